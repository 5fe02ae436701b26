"""What the platform's services share: one error tree, one way to log. Standard library and pydantic only."""
