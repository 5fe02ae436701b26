"""What the calibration part is for: conformal intervals, class probabilities, anomaly thresholds."""
