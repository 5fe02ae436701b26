"""What families are made of: data, networks, fitting, calibration, decoders, interfaces, feature search, bundle."""
