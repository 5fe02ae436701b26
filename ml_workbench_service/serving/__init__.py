"""Answers, no torch: predictor, batching, uncertainty, the publisher of records."""
