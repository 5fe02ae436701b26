"""Structured logs of every process: console or JSON lines, a correlation id on each, and the two named log files.

Files below the log folder, each line one event:
    service.log            everything that the service and its processes say
    queue_processing.log   logger `ml_workbench.queue`: each enqueue and dequeue with time and latency
    rl_training.log        logger `ml_workbench.rl`: each action, reward and cumulative reward

No line has a secret in it (`common_lib.redaction`). Several processes write the same files, one rotates them
(`common_lib.log_files`). Where thousands of events a second are logged, `log_events` writes a batch of them as the same
lines in a tenth of the time.
"""

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from json.encoder import encode_basestring as _encoded
from pathlib import Path
from typing import Any

from common_lib.log_files import LOG_FILES, LogFile
from common_lib.redaction import redacted, redacted_lines

QUEUE_LOGGER = "ml_workbench.queue"
RL_LOGGER = "ml_workbench.rl"
CORRELATION_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")

_correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
_PLAIN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_JSON_WORDS = {None: "null", False: "false", True: "true"}
_RESERVED = frozenset({"time", "level", "logger", "message"})


def new_correlation_id() -> str:
    """A fresh id for a request that brought none."""
    return os.urandom(16).hex()


def correlation_id() -> str:
    """The id of the request or job at hand, or an empty string."""
    return _correlation_id.get()


@contextmanager
def correlated(identifier: str) -> Iterator[None]:
    """Everything logged inside carries this id."""
    token = _correlation_id.set(identifier)
    try:
        yield
    finally:
        _correlation_id.reset(token)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    extras = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
    if correlation_id():
        extras.setdefault("correlation_id", correlation_id())
    return extras


def _stamp(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamps(times_s: Sequence[float]) -> list[str]:
    stamps = {each: _stamp(each) for each in set(times_s)}  # a batch's events are of few moments
    return [stamps[each] for each in times_s]


def _json_value(value: Any) -> str:
    """JSON knows no NaN and no infinity: they are written as words."""
    kind = type(value)
    if kind is str:
        return _encoded(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f'"{value}"'
    if kind is bool or value is None:
        return _JSON_WORDS[value]
    if kind is int:
        return int.__repr__(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'"{value}"'
    return json.dumps(value, default=str, ensure_ascii=False)


def _console_value(value: Any) -> str:
    text = value if type(value) is str else str(value)
    return json.dumps(text) if " " in text else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, the extras under their own names, correlation id, exception."""
        extras = _extras(record)
        if record.exc_info:
            extras["exception"] = self.formatException(record.exc_info)
        event = (record.getMessage(), *extras.values())
        return self.lines(record.name, record.levelname, [record.created], tuple(extras), [event])[0]

    def lines(
        self, logger: str, level: str, times_s: Sequence[float], names: Sequence[str], events: Sequence[tuple[Any, ...]]
    ) -> list[str]:
        """The lines of events, each of its moment; an event is its message and a value for each name."""
        keys = [_encoded(name + "_" if name in _RESERVED else name) for name in names]
        origin = f'", "level": {_encoded(level)}, "logger": {_encoded(logger)}, "message": '
        fixed = ['{"time": "', origin, *(f", {key}: " for key in keys), "}"]
        template = "%s".join([text.replace("%", "%%") for text in fixed])
        return redacted_lines(
            [
                template % (stamp, *[_json_value(value) for value in event])
                for stamp, event in zip(_stamps(times_s), events, strict=True)
            ]
        )


class ConsoleFormatter(logging.Formatter):
    """For people: time, level, logger, message, then `key=value`; line breaks inside a value cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception follows on its own lines."""
        extras = _extras(record)
        event = (record.getMessage(), *extras.values())
        line = self.lines(record.name, record.levelname, [record.created], tuple(extras), [event])[0]
        return line + (redacted("\n" + self.formatException(record.exc_info)) if record.exc_info else "")

    def lines(
        self, logger: str, level: str, times_s: Sequence[float], names: Sequence[str], events: Sequence[tuple[Any, ...]]
    ) -> list[str]:
        """The lines of events, each of its moment; an event is its message and a value for each name."""
        head = f" {level:<7} {logger}: "
        template = "%s".join([text.replace("%", "%%") for text in ["", *(f" {name}=" for name in names), ""]])
        lines = [
            stamp + head + template % (event[0], *[_console_value(value) for value in event[1:]])
            for stamp, event in zip(_stamps(times_s), events, strict=True)
        ]
        if not "".join(lines).isprintable():
            lines = [_one_line(line) for line in lines]
        return redacted_lines(lines)


_LINES = (JsonFormatter, ConsoleFormatter)


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


...


def configure_logging(*, level: str, log_dir: Path | None, style: str = "console", to_stderr: bool = True) -> None:
    """Sets up this process's logging; called once, in a process's main.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        log_dir: folder of the log files, made where missing; None writes no files.
        style: "console" or "json"; the files follow it too.
        to_stderr: whether to write to stderr as well (a worker's stderr is its own log file).
    """
    formatter: logging.Formatter = JsonFormatter() if style == "json" else ConsoleFormatter()
    root = logging.getLogger()
    _detach_all(root)
    root.setLevel(level)
    if to_stderr:
        _attach(root, logging.StreamHandler(sys.stderr), formatter)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if log_dir is None:
        return
    log_dir.mkdir(parents=True, exist_ok=True)
    service, queue, rl = (log_dir / name for name in LOG_FILES)
    _attach(root, LogFile(service), formatter)
    for name, path in ((QUEUE_LOGGER, queue), (RL_LOGGER, rl)):
        logger = logging.getLogger(name)
        _detach_all(logger)
        logger.propagate = False
        logger.setLevel(logging.INFO)
        _attach(logger, LogFile(path), formatter)


def log_events(
    logger: logging.Logger,
    level: int,
    names: Sequence[str],
    events: Sequence[tuple[Any, ...]],
    *,
    times_s: Sequence[float] | None = None,
) -> None:
    """Logs events at once: the lines that as many calls with `extra` would write, in order, in one write.

    A log file takes them as a batch, at 1 to 3 microseconds a line; any other handler, and whoever filters records, is
    given each event as a record of its own.

    Args:
        logger: whose handlers take the events.
        level: of all of them.
        names: of the values that follow an event's message.
        events: each a message, which is written as it is, and a value for each name.
        times_s: when each happened, in seconds since the epoch; None: all of them now.
    """
    if not events or not logger.isEnabledFor(level):
        return
    if correlation_id() and "correlation_id" not in names:
        names = [*names, "correlation_id"]
        events = [(*event, correlation_id()) for event in events]
    if times_s is None:
        times_s = [time.time()] * len(events)
    level_name = logging.getLevelName(level)
    for handler in _handlers_of(logger, level):
        formatter = handler.formatter
        is_filtered = handler.filters or logger.filters
        if isinstance(handler, LogFile) and isinstance(formatter, _LINES) and not is_filtered:
            handler.append(formatter.lines(logger.name, level_name, times_s, names, events))
            continue
        for created_s, event in zip(times_s, events, strict=True):
            extras = dict(zip(names, event[1:], strict=True))
            record = logging.makeLogRecord(extras | _plain(logger.name, level, created_s, event[0]))
            if logger.filter(record):
                handler.handle(record)


def _plain(logger: str, level: int, created_s: float, message: str) -> dict[str, Any]:
    return {
        "name": logger,
        "levelno": level,
        "levelname": logging.getLevelName(level),
        "msg": message,
        "created": created_s,
        "msecs": created_s % 1 * 1000,
    }


def _handlers_of(logger: logging.Logger, level: int) -> Iterator[logging.Handler]:
    """Those that take events of this level, as `Logger.callHandlers` finds them."""
    at: logging.Logger | None = logger
    while at is not None:
        yield from (handler for handler in at.handlers if level >= handler.level)
        at = at.parent if at.propagate else None


def _detach_all(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if isinstance(handler, LogFile):
            handler.close()


def _attach(logger: logging.Logger, handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setFormatter(formatter)
    logger.addHandler(handler)
