"""What the service and its table process say to each other, over one socket a question.

question   !II  length of the order, of the bytes behind it · TableOrder as JSON · the columns that come along
answer     frames of !cI, kind and length, then so many bytes:
             H  TableHead as JSON, once, before any rows
             D  rows, in the format asked for
             E  an error of the platform as JSON, in place of what is left
             Z  the end; an answer that breaks off without one was not finished
             N W  of a batch, before any rows: it needs more of the body · a chunk is to be answered
batch      frames back, each to the frame before it: B some of the body, or none at its end · A answers
"""

import struct

from pydantic import Field

from common_lib import exceptions
from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.extras import missing_extra

QUESTION = struct.Struct("!II")
FRAME = struct.Struct("!cI")
HEAD, ROWS, ERROR, END = b"H", b"D", b"E", b"Z"
NEED, CHUNK, BODY, ANSWERS = b"N", b"W", b"B", b"A"
LONGEST_FRAME = 1 << 20


class ToldError(Contract):
    """An error on its way: the class's name, or none where nobody foresaw it."""

    name: str | None
    message: str
    details: dict[str, object] = Field(default_factory=dict)
    retry_after_s: int | None = None

    @classmethod
    def of(cls, error: Exception) -> "ToldError":
        """What can be said of it."""
        told = error if isinstance(error, PlatformError) else missing_extra(error)
        if told is not None:
            name, details, retry = type(told).__name__, told.details, told.retry_after_s
            return cls(name=name, message=told.message, details=details, retry_after_s=retry)
        return cls(name=None, message=f"{type(error).__name__}: {error}"[:500])

    def error(self) -> Exception:
        """The same error again, to be raised."""
        kind = getattr(exceptions, self.name or "", None)
        if isinstance(kind, type) and issubclass(kind, PlatformError):
            return kind(self.message, details=self.details, retry_after_s=self.retry_after_s)
        return RuntimeError(f"the table process met an unexpected error: {self.message}")
