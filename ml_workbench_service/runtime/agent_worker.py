"""Agent process: `python -m ml_workbench_service.runtime.agent_worker --agent default`.

Reads the settings from the environment (`REDIS_URL` must be set: the service passes its own), continues from the
agent's checkpoint, and ends at SIGTERM or SIGINT after the batch at hand. A second process of the same agent stands by
and takes over when the first one dies or freezes; both need the same STATE_DIR. `process.json` in the agent's folder
says which process leads; its modification time is the heartbeat.
"""

import argparse
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from common_lib.exceptions import DataValidationError, PlatformError, UnavailableError
from common_lib.logging import configure_logging
from common_lib.storage import keep_as_child, make_folder
from common_lib.tracing import end_tracing
from ml_workbench_service.agents.definition import open_agent, read_definition
from ml_workbench_service.agents.leader_election import Candidacy
from ml_workbench_service.agents.status import PROCESS_FILE, agent_folder, shard_folder
from ml_workbench_service.contracts.agents import DEFAULT_AGENT_ID
from ml_workbench_service.contracts.contract import NAME_PATTERN
from ml_workbench_service.contracts.queue import stream_names
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.sending_traces import send_traces
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.run_agent import run_agent

log = logging.getLogger(__name__)


def run_shard(agent_id: str, settings: Settings, *, stop: threading.Event, shard: int = 0) -> None:
    """Runs one agent on one shard until `stop` is set.

    Raises:
        DataValidationError: the id is not a name, there is no such shard, or the checkpoint cannot be read.
        UnavailableError: no REDIS_URL.
    """
    num_shards = settings.PREDICTION_QUEUE_SHARDS
    if not re.fullmatch(NAME_PATTERN, agent_id):
        raise DataValidationError.at("agent", "An agent's id is lower case letters, digits, `_`, `.` and `-`.")
    if not 0 <= shard < num_shards:
        raise DataValidationError.at("shard", f"PREDICTION_QUEUE_SHARDS is {num_shards}: shards count from 0.")
    if settings.REDIS_URL is None:
        raise UnavailableError("The agent process needs REDIS_URL; the service sets it for the agents that it starts.")
    folder = shard_folder(settings.STATE_DIR, agent_id, shard=shard, num_shards=num_shards)
    make_folder(folder)
    queue = RedisPredictionQueue(
        settings.REDIS_URL,
        capacity=settings.PREDICTION_QUEUE_CAPACITY,
        stream=stream_names(num_shards)[shard],
        ttl_s=settings.PREDICTION_QUEUE_TTL_S,
    )
    decisions = DecisionStream(settings.REDIS_URL)
    sign = _Sign(folder / PROCESS_FILE)
    try:
        run_agent(
            agent_id,
            folder,
            open_agent=partial(open_agent, folder, agent_id),
            queue=queue,
            decisions=decisions,
            stop=stop,
            candidacy=Candidacy(
                owner=sign.owner,
                is_dead=is_dead,
                may_lead=partial(_is_wanted, agent_folder(settings.STATE_DIR, agent_id)),
                on_lead=sign.lead,
                beat=sign.beat,
            ),
        )
        sign.end()
    finally:
        queue.close()
        decisions.close()


def _is_wanted(home: Path) -> bool:
    definition = read_definition(home)
    return definition is None or definition.wanted == "running"


class _Sign:
    """`process.json`: which process leads the agent, and that it lives; and this process's name in the lease.

    A disk without room costs the sign, not the agent, which says itself what it waits for.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._record = ProcessRecord.of(os.getpid())
        self._has_led = self._is_shown = False
        self.owner = f"{socket.gethostname()}/{self._record.token}"

    def lead(self) -> None:
        """This process leads from now on."""
        self._has_led, self._is_shown = True, False
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        with suppress(OSError):
            if not self._is_shown:
                self._record.write(self._file)
                self._is_shown = True
            os.utime(self._file)

    def end(self) -> None:
        """The orderly end, where no other process leads by now."""
        if self._has_led and ProcessRecord.read(self._file) == self._record:
            with suppress(OSError):
                self._record.model_copy(update={"ended": True}).write(self._file)


def is_dead(owner: str) -> bool:
    """Whether the process of that name was one of this machine and has ended; of other machines nobody knows.

    Nor of names that are made in another way, by a version before this one: their lease is waited for.
    """
    host, _, token = owner.partition("/")
    try:
        return host == socket.gethostname() and not ProcessRecord.of_token(token).is_alive
    except ValueError:
        return False


def main() -> int:
    """Parses the command line, runs the agent, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Runs one agent on the prediction stream.")
    parser.add_argument("--agent", default=DEFAULT_AGENT_ID, help="the agent's id")
    parser.add_argument("--shard", type=int, default=0, help="which stream, where PREDICTION_QUEUE_SHARDS is above 1")
    arguments = parser.parse_args()
    agent_id: str = arguments.agent
    settings = Settings()
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    if settings.TRACES:
        send_traces(settings, "agent")
    keep_as_child(settings.STATE_DIR.resolve())
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    gc.collect()
    gc.freeze()  # what was loaded stays: collecting it again and again would hold a record up for tens of milliseconds
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        run_shard(agent_id, settings, stop=stop, shard=arguments.shard)
    except PlatformError as error:
        log.error("agent %s cannot run: %s", agent_id, error.message)
        return 1
    finally:
        end_tracing()
    return 0


if __name__ == "__main__":
    sys.exit(main())
