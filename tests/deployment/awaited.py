"""Settings that manifests and compose name, and that other branches bring. EMPTY THIS LIST AT THE MERGE: a test fails
as long as a name in it is a setting already, and nothing may stay in it."""

AWAITED_SETTINGS: frozenset[str] = frozenset({
    "ROLE", "CONTROL_URL", "TRAINING_BACKEND", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "REGISTRY_CACHE_DIR",
})  # fmt: skip
