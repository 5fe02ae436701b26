"""What became of predictions: realised moves, pending ones, and live metrics."""
