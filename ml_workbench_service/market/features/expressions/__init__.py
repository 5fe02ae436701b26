"""Expressions over bars: a grammar parsed and never run, its units, its values, and the sets that ship by name."""
