"""Submissions under watch: what of a backend's wishes has come true on the cluster, seen to by one thread.

    unsent ──submit──► sent ──► ended
       └──withdrawn───────────────┘

One thread asks the head in turn. While the head is away it tries again, and nothing that was wished is forgotten; what
was submitted without an answer is submitted again under the same id, which the head takes once.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common_lib.exceptions import PlatformError
from common_lib.redaction import redacted
from ml_workbench_service.integrations.ray_jobs import RayFault, RayJobs, RayRefused, RayUnreachable, Submission
from ml_workbench_service.runtime.on_ray.logs import FollowedLog
from ml_workbench_service.runtime.training_backends import exit_in_words

PING_EVERY_S = 5.0
"""Between two signs of life of the head while nothing is to be done there."""
STOP_AGAIN_S = 10.0
"""After which a worker that was told to stop, and has not, is told again."""
NUM_UNKNOWN = 3
"""Looks in a row that must not find a submission before it counts as gone: a head that has just begun may not know
yet what its store knows."""
PATIENCE_S = 10.0
"""Before it is said that a submission waits for the head."""
ROOM_PATIENCE_S = 60.0
"""Before it is said that it waits for room: a busy node takes tens of seconds to start a worker that it has."""
FRESH_S = 2.0
"""Age of a look by which it may be said that nothing runs yet."""
CLOSE_S = 15.0
LONGEST_REASON = 300
WITHDRAWN = "was withdrawn before it was submitted"

log = logging.getLogger(__name__)


@dataclass(eq=False)
class WatchedSubmission:
    """One submission.

    Attributes:
        body: the request to submit it; None of one that was sent before this life of the service.
        log_file: the job's worker.log, log_bytes: that stay of it.
        log_begins_at: where in that file it begins.
        waits: why no worker has begun yet, in a sentence, once that has taken a while; else the empty text.
        ending: how it ended, in words that follow "The worker process".
    """

    id: str
    body: dict[str, Any] | None
    log_file: Path
    log_bytes: int
    log_begins_at: Callable[[Submission], int]
    is_sent: bool = False
    may_be_there: bool = False  # a submit was not answered
    is_unwanted: bool = False  # stopped, or withdrawn before it began
    has_ended: bool = False
    exit_code: int | None = None
    ending: str | None = None
    found: Submission | None = None
    looked_at: float = 0.0  # time.monotonic()
    since: float = field(default_factory=time.monotonic)
    stopped_at: float | None = None
    num_unknown: int = 0
    fault: str = ""
    log: FollowedLog | None = None

    @property
    def waits(self) -> str:
        """See above. Said only of what has certainly not begun, so that the job's log has one writer."""
        if self.has_ended or time.monotonic() - self.since < PATIENCE_S:
            return ""
        if not self.is_sent:
            return "" if self.may_be_there else self.fault
        now = time.monotonic()
        is_late, is_fresh = now - self.since >= ROOM_PATIENCE_S, now - self.looked_at < FRESH_S
        is_pending = self.found is not None and self.found.status == "PENDING"
        if not (is_pending and is_late and is_fresh) or self.body is None:
            return ""
        memory_gb = self.body.get("entrypoint_memory", 0) / 1e9
        asks = f"{self.body['entrypoint_num_cpus']} CPUs, {self.body['entrypoint_num_gpus']} GPUs, {memory_gb:.1f} GB"
        return f"the Ray cluster has not begun it yet: a node must have {asks} free, and its environment be ready"


class Submissions:
    """All that are watched, by their ids.

    Args:
        poll_s: between two looks at each.
    """

    def __init__(self, jobs: RayJobs, *, poll_s: float) -> None:
        self._jobs, self._poll_s = jobs, poll_s
        self._watched: dict[str, WatchedSubmission] = {}
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._heard_at = 0.0
        self.fault = ""
        """Why the head cannot be asked; empty while it can."""
        self.version = ""
        """Of Ray, once the head has said it."""
        self._thread = threading.Thread(target=self._run, name="watch over Ray's jobs", daemon=True)
        self._thread.start()

    @property
    def num_living(self) -> int:
        """Watched ones that have not ended."""
        return sum(not each.has_ended for each in list(self._watched.values()))

    def get(self, submission_id: str) -> WatchedSubmission | None:
        """One that is watched."""
        return self._watched.get(submission_id)

    def watch(self, submission: WatchedSubmission) -> None:
        """From now on; the first look comes at once."""
        submission.is_sent = submission.body is None
        self._watched[submission.id] = submission
        self._wake.set()

    def stop(self, submission: WatchedSubmission) -> None:
        """Has the worker ended by force."""
        if not submission.is_unwanted:
            submission.is_unwanted = True
            self._wake.set()

    def withdraw(self, submission: WatchedSubmission) -> None:
        """Has one that was not sent yet never be sent, and stops one that waits for room."""
        is_waiting = submission.found is not None and submission.found.status == "PENDING"
        if not submission.is_sent or is_waiting:
            self.stop(submission)

    def note(self, error: PlatformError) -> None:
        """The head could not be asked by somebody else."""
        self.fault = redacted(error.message)

    def close(self) -> None:
        """Ends the watch, after the exchange at hand."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_S)
        for each in self._watched.values():
            if each.log is not None:
                each.log.stop()
        self._jobs.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self._look()
            except Exception:  # the watch must outlive one bad look; the next one tries again
                log.exception("a look at the Ray cluster failed; it goes on with the next")
            is_idle = self.num_living == 0
            self._wake.wait(PING_EVERY_S if is_idle else self._poll_s)

    def _look(self) -> None:
        """Each in turn; where the head is away, nobody else is asked for in vain."""
        if time.monotonic() - self._heard_at >= PING_EVERY_S and not self._heard(self._ping):
            for each in self._living():
                each.fault = self.fault
                if each.is_unwanted and not each.is_sent and not each.may_be_there:
                    _end(each, WITHDRAWN)
            return
        for each in self._living():
            if not self._heard(partial(self._see_to, each)):
                return

    def _living(self) -> list[WatchedSubmission]:
        return [each for each in list(self._watched.values()) if not each.has_ended]

    def _heard(self, ask: Callable[[], None]) -> bool:
        """Whether the head answered; what a fault of the moment kept from being done is tried again."""
        try:
            ask()
        except (RayFault, RayRefused) as error:  # of this one thing: the others are asked all the same
            log.warning("%s", error.message)
            return True
        except PlatformError as error:
            if not self.fault:
                log.warning("%s; it is asked again and again", error.message)
            self.note(error)
            self._heard_at = 0.0
            return False
        if self.fault:
            log.info("Ray's head answers again")
        self.fault, self._heard_at = "", time.monotonic()
        return True

    def _ping(self) -> None:
        self.version = self._jobs.version()

    def _see_to(self, each: WatchedSubmission) -> None:
        if not each.is_sent:
            self._send(each)
            return
        found = self._jobs.get(each.id)
        each.looked_at = time.monotonic()
        if found is None:
            self._miss(each)
            return
        each.num_unknown, each.found = 0, found
        if found.is_living:
            self._follow(each, found)
            self._press(each)
        elif found.never_began and each.body is not None and not each.is_unwanted:
            self._jobs.forget(each.id)  # it found no room in Ray's own patience; it goes on waiting
            each.is_sent = False
        else:
            self._take_end(each, found)

    def _send(self, each: WatchedSubmission) -> None:
        if each.may_be_there:
            each.is_sent = self._jobs.get(each.id) is not None
            each.may_be_there = False
        if each.is_sent:
            return
        if each.is_unwanted:
            _end(each, WITHDRAWN)
            return
        assert each.body is not None
        try:
            is_new = self._jobs.submit(each.body)
        except RayRefused as error:
            _end(each, f"was not taken by Ray: {redacted(error.message)}")
            return
        except RayUnreachable as error:
            each.may_be_there, each.fault = error.was_sent, redacted(error.message)
            raise
        if not is_new:
            log.info("%s was submitted before, and is adopted", each.id)
        each.is_sent, each.fault = True, ""

    def _miss(self, each: WatchedSubmission) -> None:
        each.num_unknown += 1
        if each.num_unknown >= NUM_UNKNOWN:
            _end(each, "is not known to Ray's head any more, which has begun anew")

    def _press(self, each: WatchedSubmission) -> None:
        """Tells an unwanted one to stop, and tells it again later."""
        now = time.monotonic()
        if each.is_unwanted and (each.stopped_at is None or now - each.stopped_at > STOP_AGAIN_S):
            each.stopped_at = now
            self._jobs.stop(each.id)

    def _follow(self, each: WatchedSubmission, found: Submission) -> None:
        if each.log is None:
            begins_at = each.log_begins_at(found)
            each.log = FollowedLog(self._jobs, each.log_file, begins_at=begins_at, most_bytes=each.log_bytes)
        if found.status == "RUNNING" and found.driver_node_id is not None:
            each.log.follow(found)

    def _take_end(self, each: WatchedSubmission, found: Submission) -> None:
        """The rest of its log first: whoever hears of the end can read it."""
        self._follow(each, found)
        assert each.log is not None
        each.log.finish(found)
        _end(each, ending_of(found), exit_code=found.driver_exit_code)


def ending_of(found: Submission) -> str:
    """How an ended submission ended, in words that follow "The worker process"."""
    reason = redacted(" ".join((found.message or "").split()))[:LONGEST_REASON].strip(" .")
    if found.status == "STOPPED":
        return "was stopped on the Ray cluster"
    if found.driver_exit_code is not None:
        return exit_in_words(found.driver_exit_code)
    if found.error_type == "JOB_SUPERVISOR_ACTOR_DIED":
        return f"was lost with its node ({reason})"
    return f"ended on the Ray cluster ({found.error_type or found.status}: {reason})"


def _end(each: WatchedSubmission, ending: str, *, exit_code: int | None = None) -> None:
    each.ending, each.exit_code = ending, exit_code
    each.has_ended = True  # last: whoever polls reads the others after it
