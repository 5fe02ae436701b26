"""Trading as reinforcement learning: environment, policies, tabular Q-learning, sweeps and sanity checks."""
