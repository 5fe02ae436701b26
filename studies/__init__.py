"""What the service's verdicts, certificates and intervals are worth, as tables: `make evaluate`, docs/evaluation.md."""
