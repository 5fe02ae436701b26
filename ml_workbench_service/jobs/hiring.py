"""The marker of an agent that is being made: one whose making is cut short must not leave a consumer group behind.

    STATE_DIR/agents/<id>/hiring    empty; there from before the agent's group is made until its definition is written

A marker beside a definition is of an agent that was made, and only the marker's end was cut short. One without a
definition is of an agent that never was: its group is given up, until no request that was on its way can arrive any
more, and then the marker goes.
"""

from contextlib import suppress
from pathlib import Path

from ml_workbench_service.agents.definition import BEGINNING_FILE, DEFINITION_FILE
from ml_workbench_service.jobs.durable import write_whole

MARKER_FILE = "hiring"


def begin_hiring(home: Path) -> None:
    """Leaves the marker, on disk when this returns.

    Raises:
        UnavailableError: the disk is full.
    """
    home.mkdir(parents=True, exist_ok=True)
    write_whole(home / MARKER_FILE, b"", durable=True)


def end_hiring(home: Path) -> None:
    """The agent is made, or its group was given up."""
    (home / MARKER_FILE).unlink(missing_ok=True)
    with suppress(OSError):  # an agent's folder, which is not empty
        home.rmdir()


def undo_definition(home: Path) -> None:
    """Removes what was written of an agent that could not be made; its marker stays."""
    for name in (DEFINITION_FILE, BEGINNING_FILE):
        (home / name).unlink(missing_ok=True)
        (home / f".{name}").unlink(missing_ok=True)


def unfinished_hires(state_dir: Path) -> list[Path]:
    """The folders in which a marker lies."""
    return sorted(marker.parent for marker in (state_dir / "agents").glob(f"*/{MARKER_FILE}"))
