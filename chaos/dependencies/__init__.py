"""Fault matrix: every outside thing behind a proxy that spoils its connections, and what the service then answers."""
