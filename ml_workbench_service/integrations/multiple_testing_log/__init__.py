"""Multiple-testing log: the file, and the families of hypotheses in it."""
