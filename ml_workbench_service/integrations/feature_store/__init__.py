"""Bars and features: the embedded sample, a folder of the user's files, a remote Feature Store Service."""
