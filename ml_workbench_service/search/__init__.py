"""Hyper-parameter search: space, study, trials and the pool of processes that runs them."""
