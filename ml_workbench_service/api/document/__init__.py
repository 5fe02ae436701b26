"""The OpenAPI document and the pages that show it: what the routes say, put so that every tool reads it."""
