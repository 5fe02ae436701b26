"""Ends of lives: deployments, versions, jobs; and that backups know them."""
