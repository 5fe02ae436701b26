"""Predict workers and the control process, by way of Redis: what is handed over, and what is to be served."""
