"""From a feature table to windows: labels, scaling, chronological purged parts."""
