"""ML Workbench: train on exchange rates, decoder honestly, deploy, predict, and let an agent learn from it."""

__version__ = "0.1.0"
