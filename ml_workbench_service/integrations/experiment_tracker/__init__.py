"""MLflow: its client, a version as an MLmodel, and what MLflow shows of a version."""
