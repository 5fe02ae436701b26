"""One training step by step: pipeline, assessment, walk-forward, publishing; `tasks` by model type."""
