"""One outside thing a file: Redis, feature stores, the model registry, the tracker. They do not import each other."""
