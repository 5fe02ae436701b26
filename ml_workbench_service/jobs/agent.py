"""The agent process: `python -m ml_workbench_service.jobs.agent --agent default`.

Reads the settings from the environment (`REDIS_URL` must be set: the service passes its own), continues from the
agent's checkpoint, and ends at SIGTERM or SIGINT after the batch at hand. `STATE_DIR/agents/<id>/process.json` says
which process it is; its modification time is the heartbeat.
"""

import argparse
import logging
import os
import re
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from common_lib.exceptions import DataValidationError, PlatformError, UnavailableError
from common_lib.logging import configure_logging
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.definition import open_mind
from ml_workbench_service.agents.state import PROCESS_FILE, agent_folder
from ml_workbench_service.contracts.agents import DEFAULT_AGENT_ID
from ml_workbench_service.contracts.contract import NAME_PATTERN
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.processes import ProcessRecord
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.act import act

LOCK_TIMEOUT_S = 2.0  # a predecessor that was just told to end may still be at its last batch

log = logging.getLogger(__name__)


def run_agent(agent_id: str, settings: Settings, *, stop: threading.Event) -> None:
    """Runs one agent until `stop` is set.

    Raises:
        DataValidationError: the id is not a name, or the checkpoint cannot be read.
        UnavailableError: no REDIS_URL, or another process runs this agent.
    """
    if not re.fullmatch(NAME_PATTERN, agent_id):
        raise DataValidationError.at("agent", "An agent's id is lower case letters, digits, `_`, `.` and `-`.")
    if settings.REDIS_URL is None:
        raise UnavailableError("The agent process needs REDIS_URL; the service sets it for the agents that it starts.")
    folder = agent_folder(settings.STATE_DIR, agent_id)
    folder.mkdir(parents=True, exist_ok=True)
    queue = RedisPredictionQueue(settings.REDIS_URL, capacity=settings.PREDICTION_QUEUE_CAPACITY)
    decisions = DecisionStream(settings.REDIS_URL)
    lock = FileLock(folder / "lock")
    try:
        with lock.acquire(timeout=LOCK_TIMEOUT_S):
            _run_locked(agent_id, folder, queue=queue, decisions=decisions, stop=stop)
    except Timeout as error:
        raise UnavailableError(f"Another process runs the agent {agent_id}; stop it first.") from error
    finally:
        queue.close()
        decisions.close()


def _run_locked(
    agent_id: str,
    folder: Path,
    *,
    queue: RedisPredictionQueue,
    decisions: DecisionStream,
    stop: threading.Event,
) -> None:
    learner = open_mind(folder, agent_id)
    if Checkpoint.load(folder) is None:
        learner.checkpoint().save(folder)
    record = ProcessRecord.of(os.getpid())
    record.write(folder / PROCESS_FILE)
    log.info("agent %s runs after %d applied entries", agent_id, learner.counters.num_applied)
    act(learner, folder, queue=queue, decisions=decisions, stop=stop, beat=partial(os.utime, folder / PROCESS_FILE))
    record.model_copy(update={"ended": True}).write(folder / PROCESS_FILE)
    log.info("agent %s ended after %d applied entries", agent_id, learner.counters.num_applied)


def main() -> int:
    """Parses the command line, runs the agent, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Runs one agent on the prediction stream.")
    parser.add_argument("--agent", default=DEFAULT_AGENT_ID, help="the agent's id")
    agent_id = parser.parse_args().agent
    settings = Settings()
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        run_agent(agent_id, settings, stop=stop)
    except PlatformError as error:
        log.error("agent %s cannot run: %s", agent_id, error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
