"""Exchanges with what stands outside, which end as a whole: over HTTP and with Redis."""
