"""Agents that learn from predictions: Q table, lanes, and the checkpoint that makes each entry count once."""
