"""The door: what is checked of a request before one byte of its body is read, and what is written down
of it; large bodies, which another process reads; and what stands outside, which readiness asks."""
