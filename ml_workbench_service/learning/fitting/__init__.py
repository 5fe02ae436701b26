"""The torch loop: objectives, optimizer, thread tuning, progress, and the ensemble over seeds."""
