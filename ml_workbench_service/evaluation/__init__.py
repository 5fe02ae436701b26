"""Measuring and judging a version: metrics, baselines, backtest, drift, and `verdict`, which alone says `skill`."""
