"""Audit log: who changed what, in a chain of hashes."""

from typing import Any, Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, UtcDatetime

AuditEvent = Literal["asked", "done", "noted"]
"""`asked` is on disk before anything is changed, `done` when it has ended, before the answer is sent; so too of what no
request asked for, such as a key that is made on the command line. `noted`: what is told after it was, a
start or the signatures that the first one made, and a restore, whose line comes with the state."""


class AuditEntry(Contract):
    """One line of the log."""

    number: int = Field(ge=1, description="Counts from 1, without gaps.")
    at: UtcDatetime
    event: AuditEvent
    key: str = Field(description="Id of the key; `API_KEY`; `none` where no key is needed; `service`, `command_line`.")
    client: str = ""
    address: str = ""
    what: str = Field(
        description="The operation, or what was noted.", examples=["POST /api/v1/models/{model_id}/deploy"]
    )
    on: str = Field(default="", description="The path that was asked for, or what it was done to.")
    of: int | None = Field(default=None, description="Of `done`: the number of its `asked`.")
    status: int | None = Field(
        default=None, description="Of `done`: the answer's, or what one would have; from 400 on: refused."
    )
    before: Any = Field(default=None, description="Of `asked`: what stood there; null for what is new.")
    after: Any = Field(default=None, description="Of `done`: the answer, cut where it is long.")
    correlation_id: str = ""
    previous: str = Field(description="`hash` of the entry before; 64 zeros of the first.")
    hash: str = Field(description="SHA-256 of `previous` and of this entry without its hash, keys sorted.")


class AuditHead(Contract):
    """The newest entry. Kept elsewhere, it proves later that nothing before it was changed or taken away."""

    number: int
    hash: str


class AuditList(Contract):
    """`GET /audit`, newest first."""

    audit: tuple[AuditEntry, ...]
    head: AuditHead
    next_cursor: str | None = None


class AuditFault(Contract):
    """One place where the chain is broken."""

    line: int
    problem: str


class AuditReport(Contract):
    """What a verification found."""

    num_entries: int
    num_torn: int = Field(description="Lines that a kill or a full disk cut off; the chain goes on behind them.")
    head: AuditHead
    faults: tuple[AuditFault, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was changed, added in between or taken away."""
        return not self.faults
