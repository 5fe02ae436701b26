"""Close names: which known ones an unknown one is nearest to, at a cost that whoever sent it cannot raise."""

import difflib
from collections.abc import Iterable

LONGEST = 64
"""Characters of a name that is compared; what is longer is nobody's slip of the pen, and compares in quadratic time."""


def close_names(name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The nearest ones, best first; none for a name that is too long to be one."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff) if len(name) <= LONGEST else []
