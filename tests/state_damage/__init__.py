"""Random damage to the files of a service: the short form of `make fuzz`, and the cases that it has found."""
