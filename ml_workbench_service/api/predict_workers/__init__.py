"""Predict workers on the wire: what they pass on, what they report, and the control process behind them."""
