"""The report of a desk: what a version's kept rows of the test part say beyond the verdict."""
