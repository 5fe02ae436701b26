"""One file a contestant of `benchmarks.training_speed`; each is a process, the peers in their own environments."""
