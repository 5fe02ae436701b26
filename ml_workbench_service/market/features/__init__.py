"""Features of bars: indicators by name, expressions over columns, their tables and derivation."""
