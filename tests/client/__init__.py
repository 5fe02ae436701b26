"""The Python client: on a real service, on servers that fail, and step by step without any."""
