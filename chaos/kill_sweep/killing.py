"""Killing at a point: work in a forked child that ends itself with SIGKILL before a line, or at a byte of a file.

    lines    every line of the product's modules that write, as Python comes to it: `sys.settrace` counts them
    bytes    a file's growth beyond so many bytes: the kernel writes what fits and then sends SIGXFSZ, which kills, so
             that a write is torn exactly there

A kill leaves what the kernel has; a power cut, which may lose what was not synced, is not tried here.
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

PRODUCT = Path(__file__).resolve().parents[2]
Kind = Literal["lines", "bytes"]
Acknowledge = Callable[[str], None]
Work = Callable[[Acknowledge], None]


@dataclass(frozen=True)
class Point:
    """Where to kill: before the line of this number, or at this byte of any file."""

    kind: Kind
    number: int


@dataclass
class Ended:
    """How a child ended.

    Attributes:
        acknowledged: what it had done, in its own words, each said once it was done.
        num_lines: it came to, where it was not killed.
        fault: its traceback, where it failed by itself.
        was_killed: by the point.
    """

    acknowledged: list[str] = field(default_factory=list)
    num_lines: int = 0
    fault: str = ""
    was_killed: bool = False


def run(work: Work, *, modules: tuple[str, ...], at: Point | None) -> Ended:
    """The work in a child, killed at the point; None: counted to its end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _child(work, modules, at, writing)
    os.close(writing)
    with os.fdopen(reading, "r", encoding="utf-8") as told:
        said = [json.loads(line) for line in told if line.endswith("\n")]
    _, status = os.waitpid(pid, 0)
    ended = Ended(was_killed=os.WIFSIGNALED(status))
    for kind, value in said:
        if kind == "acknowledged":
            ended.acknowledged.append(value)
        elif kind == "lines":
            ended.num_lines = value
        else:
            ended.fault = value
    if ended.was_killed and os.WTERMSIG(status) not in (signal.SIGKILL, signal.SIGXFSZ):
        ended.fault = f"the child ended by signal {os.WTERMSIG(status)}"
    return ended


def _child(work: Work, modules: tuple[str, ...], at: Point | None, writing: int) -> None:
    """Never returns."""

    def tell(kind: str, value: Any) -> None:
        os.write(writing, json.dumps([kind, value]).encode() + b"\n")

    try:
        if at is not None and at.kind == "bytes":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (at.number, hard))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        counter = _Lines(modules, at.number if at is not None and at.kind == "lines" else None)
        sys.settrace(counter.calls)
        try:
            work(lambda words: tell("acknowledged", words))
        finally:
            sys.settrace(None)
        tell("lines", counter.num)
        code = 0
    except BaseException:
        tell("fault", traceback.format_exc()[-3000:])
        code = 1
    os._exit(code)


class _Lines:
    """Counts lines of some modules, and kills before one of them."""

    def __init__(self, modules: tuple[str, ...], last: int | None) -> None:
        self._files = {str(PRODUCT / each) for each in modules}
        self._last = last
        self.num = 0

    def calls(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Of every function that is called."""
        return self.lines if frame.f_code.co_filename in self._files else None

    def lines(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Of the functions of these modules."""
        if event == "line":
            self.num += 1
            if self.num == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.lines
