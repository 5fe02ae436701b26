"""The prediction ledger: `ledger` is its door, `rows` its table, `file` how the database is opened."""
