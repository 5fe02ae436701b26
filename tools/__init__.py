"""Small programs of the build: they run from the Makefile and never from the service."""
