"""Ends of agents: one begins anew, or is removed; a kill leaves the old or the new one, and the next start finishes it.

STATE_DIR/agents/
    <id>/reset.json                       there from before the first of its checkpoints begins anew until the last has
    <id>/before_reset.<time>.json         a checkpoint as it was, for people; in shard<k>of<K>/ where there are shards
    .removed.<id>.<random>/               an agent that was removed, as long as its files are
A reset keeps what the queue's accounting must agree with: `num_applied`, the last applied entry and the entries given
up; whatever was pending then is acknowledged, or applied, once, as if nothing had happened. Everything else is as the
agent's definition has it begin. The new checkpoint is of the next term, so that nobody who held the lease before
overwrites it. Open positions are dropped without a trade: what they would have earned counts nowhere.
"""

import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from common_lib.exceptions import ConflictError, PlatformError
from ml_workbench_service.agents.checkpoint import Checkpoint, Counters
from ml_workbench_service.agents.definition import new_agent
from ml_workbench_service.agents.status import PROCESS_FILE
from ml_workbench_service.contracts.contract import Contract, UtcDatetime
from ml_workbench_service.jobs.durable_files import clear_disk_errors, sync_folder, write_whole
from ml_workbench_service.jobs.process_record import ProcessRecord

RESET_FILE = "reset.json"
REMOVED = ".removed."
_SHARD = re.compile(r"shard\d+of\d+")

log = logging.getLogger(__name__)


class _Reset(Contract):
    """`reset.json`: everything saved before that moment begins anew."""

    at: UtcDatetime


def check_unled(home: Path) -> None:
    """Raises ConflictError where a process leads the agent still, such as another service's stand-by."""
    for folder in _folders(home):
        record = ProcessRecord.read(folder / PROCESS_FILE)
        if record is not None and record.is_alive:
            raise ConflictError(
                f"process {record.pid} still works for agent {home.name}; end it (is it another service's?), then try "
                "again"
            )


def reset(home: Path, at: datetime) -> None:
    """Begins the agent anew; no process of it may run.

    Raises:
        UnavailableError: the disk is full. The agent is as it was, or, where the first of several shards has begun
            anew, the others follow at the next start.
        DataValidationError: a file of the agent cannot be read.
    """
    write_whole(home / RESET_FILE, _Reset(at=at).model_dump_json().encode(), durable=True)
    try:
        finish_reset(home)
    except PlatformError:
        if not any(_has_begun(folder, at) for folder in _folders(home)):
            (home / RESET_FILE).unlink()
        raise


def finish_reset(home: Path) -> None:
    """Begins the agent anew where a marker says so; no process of it may run.

    Raises:
        UnavailableError: the disk is full; the next try goes on from here.
        DataValidationError: a file of the agent cannot be read.
    """
    try:
        at = _Reset.model_validate_json((home / RESET_FILE).read_bytes()).at
    except FileNotFoundError:
        return
    for folder in _folders(home):
        before = Checkpoint.load(folder)
        if before is None or _has_begun(folder, at):
            continue
        aside = folder / f"before_reset.{at:%Y%m%dT%H%M%S.%f}.json"
        write_whole(aside, before.model_dump_json().encode(), durable=True)
        agent = new_agent(home, home.name)
        num_applied = before.counters.num_applied
        agent.counters = Counters(num_applied=num_applied, num_before_reset=num_applied)
        agent.last_applied_id = before.last_applied_id
        fresh = agent.checkpoint(given_up=before.given_up, term=before.term + 1, stream_epoch=before.stream_epoch)
        with clear_disk_errors(aside):
            fresh.model_copy(update={"reset_at": at}).save(folder)
    (home / RESET_FILE).unlink()
    sync_folder(home)


def remove_files(home: Path) -> None:
    """Removes an agent's folder, in one step for whoever looks."""
    away = home.with_name(f"{REMOVED}{home.name}.{secrets.token_hex(4)}")
    home.rename(away)
    sync_folder(away.parent)
    shutil.rmtree(away, ignore_errors=True)


def finish_ends(state_dir: Path) -> None:
    """At start, before any agent runs: what a kill has interrupted."""
    root = state_dir / "agents"
    for removed in root.glob(f"{REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)
    for marker in root.glob(f"*/{RESET_FILE}"):
        try:
            finish_reset(marker.parent)
        except PlatformError as error:
            log.error("agent %s does not begin anew: %s", marker.parent.name, error.message)


def _has_begun(folder: Path, at: datetime) -> bool:
    """Whether the checkpoint there is of the agent that began anew then."""
    found = Checkpoint.load(folder)
    return found is not None and found.reset_at is not None and found.reset_at >= at


def _folders(home: Path) -> Iterator[Path]:
    """Of the agent's processes, of every number of shards that it ever had."""
    yield home
    yield from (each for each in sorted(home.glob("shard*of*")) if _SHARD.fullmatch(each.name))
