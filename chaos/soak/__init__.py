"""Soak: mixed load for a long time while something outside, a worker or the disk fails every twenty seconds."""
