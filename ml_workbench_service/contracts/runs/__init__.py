"""Records of a run as columns."""
