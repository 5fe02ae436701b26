"""One finding of `doctor`."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "off", "doubtful", "broken"]
"""Fine · not in use · it works, though not as somebody might expect · the service would not work with it."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do about it."""

    name: str
    state: State
    detail: str
    next_step: str = ""
