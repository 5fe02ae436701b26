"""One verb, one straight line: train, replay, act, track."""
