"""Prediction ledger: `ledger` is its door, `rows` its tables, `reader` and `writer` ask and write them."""
