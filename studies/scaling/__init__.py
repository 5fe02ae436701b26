"""Scaling beyond one machine: constants measured by real parts, a model of cost and latency, a simulation beside it."""
