"""What families share. `family`, `scaling`, `windows`, `uncertainty` and `evaluation` are free of torch."""
