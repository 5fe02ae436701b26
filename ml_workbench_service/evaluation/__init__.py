"""Measuring and judging a version: metrics, baselines, backtest of the signal, drift, and `verdict`, which alone says `skill`."""
