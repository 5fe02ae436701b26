"""Access: who may do what: scopes of operations, keys of clients, limits, and the audit log of what was changed."""
