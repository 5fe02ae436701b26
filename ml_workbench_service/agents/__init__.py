"""Agents that learn from predictions: Q table, series, and the checkpoint that makes each entry count once."""
