"""Kill sweep: what is written step by step is killed at every step, and must be whole, and go on, afterwards."""
