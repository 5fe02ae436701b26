"""Answers of many questions to one version, as columns."""
