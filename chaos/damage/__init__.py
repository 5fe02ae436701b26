"""Random damage: bytes of any file below STATE_DIR and the registry become other bytes, and every route still answers.

The promise: 2xx, or an error that the operation's documentation names, and never a 500; lists go on; and what is put
back is as if nothing had been. `python -m chaos.damage` (`make fuzz`) runs many cases, the tests a few.
"""
