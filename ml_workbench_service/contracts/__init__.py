"""The nouns that cross HTTP, disk or stream: frozen pydantic classes that refuse unknown keys, and the protocols."""
