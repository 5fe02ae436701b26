"""Process pool for trials: `WorkerPool` runs several at a time and ends with the process that started it.

Each is a fresh interpreter with a socket to its parent: parameters one way, intermediate scores and the end of the
trial the other, a line of JSON each; after every score it waits to hear whether to go on. One that dies takes its trial
along and nothing else. A child whose parent was killed sees it at its next report, and the kernel
is asked to end it at once where it can be (Linux).
"""

import ctypes
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter

from common_lib import exceptions
from common_lib.exceptions import JobCancelled, PlatformError
from ml_workbench_service.jobs.workers_folder import AttemptLostError
from ml_workbench_service.search.trial import TrialEnd, TrialReport

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
GRACE_S = 2.0
ENTRY = "import sys; from ml_workbench_service.search.worker_pool import work; work(int(sys.argv[1]))"
_END = TypeAdapter(TrialEnd)
log = logging.getLogger(__name__)


class Maker(Protocol):
    """What a process of the pool makes trials with: a `TrialMaker`."""

    def make(self, number: int, params: dict[str, Any], report: TrialReport) -> TrialEnd:
        """Trains and scores."""
        ...


@dataclass(frozen=True)
class OpenMaker:
    """How a process of the pool opens what it makes trials with.

    Attributes:
        function: `package.module:name` of a context manager that gives a maker.
        about: its only argument, as JSON keeps it.
    """

    function: str
    about: Mapping[str, Any]

    def __call__(self) -> AbstractContextManager[Maker]:
        """Opens it."""
        module, _, name = self.function.partition(":")
        opened: AbstractContextManager[Maker] = getattr(importlib.import_module(module), name)(self.about)
        return opened


@dataclass(frozen=True)
class Score:
    """An intermediate score; the pool's process waits for `answer`."""

    number: int
    step: int
    value: float


@dataclass(frozen=True)
class Done:
    """A trial has ended; without an end, `error` kept it from one, and would keep the others too."""

    number: int
    end: TrialEnd | None
    error: PlatformError | None = None


class Pool(Protocol):
    """Where several trials are made at a time; `RayPool` is one too. The context ends everything that runs there."""

    @property
    def has_room(self) -> bool:
        """Whether another trial may begin."""
        ...

    def give(self, number: int, params: dict[str, Any]) -> None:
        """Begins a trial."""
        ...

    def answer(self, number: int, sentence: str) -> None:
        """After a score: go on (the empty sentence), or give up because of this."""
        ...

    def news(self, timeout_s: float) -> Iterator[Score | Done]:
        """What has happened, after at most that long."""
        ...


class WorkerPool:
    """So many processes, each with at most one trial.

    Args:
        size: processes.
        open_maker: what each works with, opened there.
        num_threads: threads of each.
    """

    def __init__(self, size: int, open_maker: OpenMaker, *, num_threads: int) -> None:
        self._open_maker = open_maker
        self._num_threads = num_threads
        self._members = [self._started() for _ in range(size)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.stop()

    @property
    def has_room(self) -> bool:
        """Whether a process is idle."""
        return any(member.number is None for member in self._members)

    def give(self, number: int, params: dict[str, Any]) -> None:
        """Gives a trial to an idle process."""
        member = next(each for each in self._members if each.number is None)
        member.number = number
        member.pipe.send({"number": number, "params": params})

    def answer(self, number: int, sentence: str) -> None:
        """After a score: go on (the empty sentence), or give up because of this."""
        member = next(each for each in self._members if each.number == number)
        try:
            member.pipe.send(sentence)
        except OSError:  # it died meanwhile; `news` will tell
            log.info("trial %d ended before it could be answered", number)

    def news(self, timeout_s: float) -> Iterator[Score | Done]:
        """What has happened, after at most that long."""
        readable, _, _ = select.select([member.pipe for member in self._members], [], [], timeout_s)
        for member in [each for each in self._members if each.pipe in readable]:
            try:
                message = _told(member.pipe.recv())
            except (EOFError, OSError):
                yield from self._lost(member)
                continue
            if isinstance(message, Done):
                member.number = None
            yield message

    def _lost(self, member: "_Member") -> Iterator[Done]:
        """A process ended; another takes its place."""
        member.stop()
        number, code = member.number, member.process.returncode
        self._members[self._members.index(member)] = self._started()
        if number is None:
            raise RuntimeError(f"a process for trials ended with code {code} before it had one; see worker.log")
        hint = " (often the system ran out of memory)" if code == -signal.SIGKILL else ""
        yield Done(number, TrialEnd("failed", message=f"the trial's process ended with code {code}{hint}"))

    def _started(self) -> "_Member":
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", ENTRY, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        member = _Member(process, Pipe(ours))
        about = {"open": asdict(self._open_maker), "num_threads": self._num_threads, "parent": os.getpid()}
        member.pipe.send(about)
        return member


class Pipe:
    """Lines of JSON over a socket of our own.

    Raises (in every method):
        EOFError: the other end was closed, or its process is gone.
        OSError: likewise, as the system says it.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel
        self._lines = channel.makefile("rb")

    def fileno(self) -> int:
        """For `select`; whoever waits has answered all that came before, so nothing is left in a buffer."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Returns once the system has all of it."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def recv(self) -> Any:
        """Waits for a whole message."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the other end of the pipe is closed")
        return json.loads(line)

    def close(self) -> None:
        """The other end reads an end of file."""
        self._lines.close()
        self._socket.close()


@dataclass(eq=False)
class _Member:
    process: "subprocess.Popen[bytes]"
    pipe: Pipe
    number: int | None = None  # of the trial at hand

    def stop(self) -> None:
        """Nothing that it holds is of worth."""
        self.pipe.close()
        self.process.terminate()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def work(descriptor: int) -> None:
    """The life of a process of the pool; its parent's first words are what to work with."""
    pipe = Pipe(socket.socket(fileno=descriptor))
    about = pipe.recv()
    parent = int(about["parent"])
    _end_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the job's, which would only ask
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    import torch

    torch.set_num_threads(int(about["num_threads"]))

    def check() -> None:
        if os.getppid() != parent:
            raise JobCancelled("the process that this trial was made for is gone")

    with _quiet_end(), OpenMaker(**about["open"])() as maker:
        while True:
            given = pipe.recv()

            def hear(step: int, value: float, number: int = given["number"]) -> str:
                pipe.send({"number": number, "step": step, "value": value})
                return str(pipe.recv())

            try:
                end = maker.make(given["number"], given["params"], TrialReport(check, hear))
                pipe.send({"number": given["number"], "end": end_to_json(end)})
            except JobCancelled:
                return
            except PlatformError as error:  # an outage: the job's, not the trial's
                pipe.send({"number": given["number"], "error": error.body("")})


def _told(message: Mapping[str, Any]) -> Score | Done:
    """A child's line as what it stands for; an error of ours becomes one of its own class again."""
    if "step" in message:
        return Score(message["number"], message["step"], message["value"])
    if "end" in message:
        return Done(message["number"], end_of(message["end"]))
    return Done(message["number"], None, error_of(message["error"]))


def end_to_json(end: TrialEnd) -> dict[str, Any]:
    """An end as a child tells it."""
    told: dict[str, Any] = _END.dump_python(end, mode="json")
    return told


def end_of(told: Mapping[str, Any]) -> TrialEnd:
    """The end that a child told."""
    return _END.validate_python(told)


def error_of(body: Mapping[str, Any]) -> PlatformError:
    """A child's error as one of its own class again."""
    if body["error_type"] == AttemptLostError.__name__:
        return AttemptLostError(body["message"])  # ends the attempt, not the job
    kind = getattr(exceptions, body["error_type"], PlatformError)
    error: PlatformError = kind(body["message"], details=body["details"])
    return error


@contextmanager
def _quiet_end() -> Iterator[None]:
    """The parent closed the pipe, or is gone: there is nobody to tell."""
    try:
        yield
    except (EOFError, ConnectionError):
        log.info("the pool is dismissed")


def _end_with(parent: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies; elsewhere than on Linux the reports look for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
