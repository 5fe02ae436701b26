"""Side-by-side runs against named peers; each prints ratios, never figures alone. `make bench` runs them all."""
