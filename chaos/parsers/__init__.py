"""Parsers against whatever bytes come: each file of this folder promises what one kind of reader makes of them.

The promise: values, or the documented error, and no other exception; never values that were not written; in bounded
time. `python -m chaos.parsers` (`make fuzz`) tries for minutes, the tests a few cases of each.
"""

import importlib

MODULES = ("bar_files", "expressions", "tensors", "arrow_batches", "bundles", "checkpoints", "records")


def load() -> None:
    """Registers every promise."""
    for each in MODULES:
        importlib.import_module(f"{__name__}.{each}")
