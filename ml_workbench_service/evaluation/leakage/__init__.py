"""Look-ahead: the certificate, and the perturbations and checks that it rests on."""
