"""A version's files: export to ONNX and int8, the manifest with its digests, and the session that answers."""
