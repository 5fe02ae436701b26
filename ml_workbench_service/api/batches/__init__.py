"""Many predictions in one request: the fast path of JSON, and Arrow."""
