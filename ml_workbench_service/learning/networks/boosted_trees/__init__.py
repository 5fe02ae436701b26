"""Gradient-boosted trees: `hyperparameters.py`, the families' half, the training, and the graph."""
