"""Delivery attempts: how often a process began to apply an entry that its predecessor left behind,
in `attempts.json` of the agent's folder.

An entry that ends the process that applies it would end every agent that is started again. The server counts how often
an entry was delivered, but an answer that was lost on the way counts there too; here only a beginning counts.
"""

from pathlib import Path

from pydantic import ValidationError

from ml_workbench_service.contracts.contract import Contract

ATTEMPTS_FILE = "attempts.json"


class Attempts(Contract):
    """One entry, the first of what was left behind; the others wait for it."""

    entry_id: str = ""
    num: int = 0

    @classmethod
    def next(cls, folder: Path, entry_id: str) -> "Attempts":
        """The attempt that would begin now, counted from what anybody wrote down."""
        try:
            found = cls.model_validate_json((folder / ATTEMPTS_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):  # none, or torn by the end of the process that wrote it
            found = cls()
        return cls(entry_id=entry_id, num=1 + (found.num if found.entry_id == entry_id else 0))

    def write(self, folder: Path) -> None:
        """Writes it down before the next step; it need not survive a power cut."""
        (folder / ATTEMPTS_FILE).write_text(self.model_dump_json(), encoding="utf-8")
