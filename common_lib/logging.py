"""Structured logs of every process: console or JSON lines, a correlation id on each, and the two named log files.

Files below the log folder, each line one event:
    service.log            everything that the service and its processes say
    queue_processing.log   logger `ml_workbench.queue`: each enqueue and dequeue with time and latency
    rl_training.log        logger `ml_workbench.rl`: each action, reward and cumulative reward

Several processes write the same files, so every handler reopens a file that somebody rotated (`WatchedFileHandler`).
"""

import json
import logging
import math
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

QUEUE_LOGGER = "ml_workbench.queue"
RL_LOGGER = "ml_workbench.rl"
CORRELATION_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")

_correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
_PLAIN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}


def new_correlation_id() -> str:
    """A fresh id for a request that brought none."""
    return uuid.uuid4().hex


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
    return {key: value for key, value in record.__dict__.items() if key not in _PLAIN}


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they are written as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, correlation id, then the extras under their own names."""
        line: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if correlation_id():
            line["correlation_id"] = correlation_id()
        line.update(_extras(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: _finite(value) for key, value in line.items()}, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """For people: time, level, logger, message, then `key=value`; line breaks inside a value cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception follows on its own lines."""
        extras = _extras(record)
        if correlation_id():
            extras.setdefault("correlation_id", correlation_id())
        tail = "".join(
            f" {key}={json.dumps(str(value)) if ' ' in str(value) else value}" for key, value in extras.items()
        )
        message = record.getMessage() + tail
        line = f"{_stamp(record)} {record.levelname:<7} {record.name}: " + message.replace("\r", "\\r").replace(
            "\n", "\\n"
        )
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


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
    _attach(root, _log_file(log_dir / "service.log"), formatter)
    for name, file in ((QUEUE_LOGGER, "queue_processing.log"), (RL_LOGGER, "rl_training.log")):
        logger = logging.getLogger(name)
        _detach_all(logger)
        logger.propagate = False
        logger.setLevel(logging.INFO)
        _attach(logger, _log_file(log_dir / file), formatter)


def _detach_all(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()


def _log_file(path: Path) -> logging.Handler:
    """Text that is no valid Unicode is escaped, else its whole line would be lost."""
    return WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")


def _attach(logger: logging.Logger, handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setFormatter(formatter)
    logger.addHandler(handler)
