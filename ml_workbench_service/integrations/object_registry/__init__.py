"""The model registry in a bucket of an object store: bundles, histories, a local mirror of what readers need."""
