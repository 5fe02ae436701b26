"""Hand-in: how a worker's version gets published by the service, which alone can sign it.

    <registry>/.staging/<job_id>/      the draft, whole, with its manifest
    <jobs>/<job_id>/handed_in.json     HandedIn: which version it is, and the manifest's digest; the worker writes it
    <jobs>/<job_id>/refused.json       Refusal: why the service did not publish it

The service takes `handed_in.json` away once the version is in its place, or the refusal is on disk. A worker waits for
either, whoever is away: a service that was stopped finds the file at its next start. A worker that was killed while it
waited is followed by another, which finds the version published or hands it in again.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from common_lib import exceptions
from common_lib.exceptions import PlatformError, TrainingError
from common_lib.storage import FolderGoneError, check_there
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.jobs.durable_files import write_whole

HANDED_IN_FILE = "handed_in.json"
REFUSED_FILE = "refused.json"
LOOK_EVERY_S = 0.05


class HandedIn(Contract):
    """A version that waits for its signature."""

    model_id: str
    version: str
    digest: str


class Refusal(Contract):
    """Why it was not published: an error of the platform, by its class."""

    error_type: str
    message: str
    details: dict[str, Any]

    @classmethod
    def of(cls, error: PlatformError) -> "Refusal":
        """As the worker is to raise it."""
        body = error.body("")
        return cls(error_type=body["error_type"], message=body["message"], details=body["details"])

    def error(self) -> PlatformError:
        """The error again; of a class that is not known, a failed training."""
        kind = getattr(exceptions, self.error_type, TrainingError)
        is_ours = isinstance(kind, type) and issubclass(kind, PlatformError)
        return (kind if is_ours else TrainingError)(self.message, details=self.details)


class HandIn(Protocol):
    """What a worker's registry publishes through; returns once the version is in its place."""

    def __call__(self, job_id: str, handed: HandedIn, *, check: Callable[[], None]) -> None:
        """Hands in and waits; raises what the service refused it with, or what `check` raises."""
        ...


class FolderHandIn:
    """Through the job's folder, to a service on the same disk."""

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs

    def __call__(self, job_id: str, handed: HandedIn, *, check: Callable[[], None]) -> None:
        """Hands in and waits, however long; see the protocol."""
        folder = self._jobs / job_id
        hand_in(folder, handed)
        while waits(folder / HANDED_IN_FILE):
            check()
            time.sleep(LOOK_EVERY_S)
        refusal = refusal_in(folder)
        if refusal is not None:
            raise refusal.error()


def hand_in(folder: Path, handed: HandedIn) -> None:
    """Leaves it in a job's folder for the service; on disk when this returns."""
    (folder / REFUSED_FILE).unlink(missing_ok=True)
    write_whole(folder / HANDED_IN_FILE, handed.model_dump_json().encode(), durable=True)


def refusal_in(folder: Path) -> Refusal | None:
    """Why the service did not publish what was handed in; None where it did, or has not come to it."""
    try:
        return Refusal.model_validate_json((folder / REFUSED_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        return Refusal.of(TrainingError("the version was not published; the service's log says why"))


def waits(file: Path) -> bool:
    """Whether a version still waits there; it does while STATE_DIR is gone, where no file is."""
    if file.exists():
        return True
    try:
        check_there(file)
    except FolderGoneError:
        return True
    return file.exists()  # the folder may have come back in between


def handed_in(folder: Path) -> HandedIn | None:
    """What waits in a job's folder; None where nothing does. One `stat` where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = (folder / HANDED_IN_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return HandedIn.model_validate_json(content)


def answer(folder: Path, refusal: Refusal | None = None) -> None:
    """Lets the worker go on: the version is published, or refused."""
    if refusal is not None:
        write_whole(folder / REFUSED_FILE, refusal.model_dump_json().encode(), durable=True)
    (folder / HANDED_IN_FILE).unlink(missing_ok=True)
