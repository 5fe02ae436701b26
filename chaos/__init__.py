"""Chaos testing, `make chaos`: each fault against each promise of the queue, at random moments of printed seeds."""
