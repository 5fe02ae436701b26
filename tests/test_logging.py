"""Structured logs: one event a line whatever is in it, the correlation id on each, and the two named files."""

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common_lib.logging import (
    CORRELATION_PATTERN,
    QUEUE_LOGGER,
    RL_LOGGER,
    ConsoleFormatter,
    JsonFormatter,
    configure_logging,
    correlated,
    correlation_id,
    log_events,
    new_correlation_id,
)

log = logging.getLogger("tests.logging")
NASTY = 'a\nb\r\nc \x1b[31m \ud800 \u2028 "quoted" {} %s'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Logging is put back as it was."""
    root = logging.getLogger()
    named = [logging.getLogger(name) for name in (QUEUE_LOGGER, RL_LOGGER)]
    before = list(root.handlers), root.level, [(list(each.handlers), each.propagate) for each in named]
    yield tmp_path / "made" / "logs"
    for logger in (root, *named):
        for handler in logger.handlers:
            if handler not in before[0]:
                handler.close()
    root.handlers, root.level = before[0], before[1]
    for logger, (handlers, propagate) in zip(named, before[2], strict=True):
        logger.handlers, logger.propagate = handlers, propagate


def lines(file: Path) -> list[str]:
    """A file's lines, split at line feeds alone."""
    return file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def test_three_files_take_what_belongs_to_them(folder: Path) -> None:
    configure_logging(level="INFO", log_dir=folder, style="json", to_stderr=False)
    log.info("plain")
    log.debug("unheard")
    logging.getLogger(QUEUE_LOGGER).info("enqueue", extra={"latency_ms": 0.5})
    logging.getLogger(RL_LOGGER).info("reward", extra={"reward": 0.1})
    said = {file.name: [json.loads(line)["message"] for line in lines(file)] for file in folder.iterdir()}
    assert said == {"service.log": ["plain"], "queue_processing.log": ["enqueue"], "rl_training.log": ["reward"]}
    queue = json.loads(lines(folder / "queue_processing.log")[0])
    assert queue["latency_ms"] == 0.5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", queue["time"])


def test_configuring_again_doubles_nothing(folder: Path) -> None:
    for _ in range(3):
        configure_logging(level="INFO", log_dir=folder, style="json", to_stderr=False)
    log.info("once")
    logging.getLogger(QUEUE_LOGGER).info("once")
    assert len(lines(folder / "service.log")) == len(lines(folder / "queue_processing.log")) == 1


def test_a_rotated_file_is_opened_anew(folder: Path) -> None:
    configure_logging(level="INFO", log_dir=folder, style="json", to_stderr=False)
    log.info("first")
    (folder / "service.log").rename(folder / "service.log.1")
    log.info("second")
    assert json.loads(lines(folder / "service.log.1")[0])["message"] == "first"
    assert json.loads(lines(folder / "service.log")[0])["message"] == "second"


def test_a_correlation_id_is_on_every_line_within_and_none_without() -> None:
    assert correlation_id() == ""
    with correlated("outer"):
        with correlated("inner"):
            assert correlation_id() == "inner"
        assert correlation_id() == "outer"
        assert formatted(JsonFormatter())["correlation_id"] == "outer"
        assert "correlation_id=outer" in ConsoleFormatter().format(record())
    assert "correlation_id" not in formatted(JsonFormatter())
    assert CORRELATION_PATTERN.fullmatch(new_correlation_id())
    assert new_correlation_id() != new_correlation_id()


async def test_requests_at_the_same_time_keep_their_own_ids() -> None:
    async def one(identifier: str) -> list[str]:
        seen = []
        with correlated(identifier):
            for _ in range(5):
                await asyncio.sleep(0)
                seen.append(correlation_id())
                seen.append(await asyncio.to_thread(correlation_id))
        return seen

    names = [f"request-{number}" for number in range(8)]
    assert await asyncio.gather(*map(one, names)) == [[name] * 10 for name in names]


def record(message: str = "said", **extra: object) -> logging.LogRecord:
    """A log record with extras."""
    made = logging.LogRecord("tests", logging.INFO, __file__, 1, message, None, None)
    made.__dict__.update(extra)
    return made


def formatted(formatter: logging.Formatter, message: str = "said", **extra: object) -> dict[str, object]:
    """A record's one JSON line, parsed as strictly as JSON is."""
    line = formatter.format(record(message, **extra))
    assert "\n" not in line
    assert "\r" not in line

    def refuse(text: str) -> object:
        raise AssertionError(f"{text} is no JSON")

    parsed: dict[str, object] = json.loads(line, parse_constant=refuse)
    return parsed


@pytest.mark.parametrize("value", [NASTY, float("nan"), float("inf"), Path("/x"), {"a": {1, 2}}, None, 10**40, b"\xff"])
def test_json_stays_one_object_a_line_whatever_is_in_it(value: object) -> None:
    parsed = formatted(JsonFormatter(), str(value), value=value)
    assert parsed["message"] == str(value)
    assert "value" in parsed
    assert parsed["level"] == "INFO"


def test_the_console_stays_one_line_a_record_whatever_is_in_it() -> None:
    line = ConsoleFormatter().format(record(NASTY, value=NASTY, number=3))
    assert "\n" not in line
    assert "\r" not in line
    assert " number=3" in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_text_that_is_no_unicode_does_not_lose_its_line(
    folder: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level="INFO", log_dir=folder, style=style, to_stderr=False)
    log.info("before \ud800 after", extra={"key": "\udfff"})
    log.info("next")
    said = lines(folder / "service.log")
    assert len(said) == 2
    assert "before \\ud800 after" in said[0]
    assert "Logging error" not in capsys.readouterr().err


def test_an_exception_is_part_of_its_line_in_json_and_follows_it_on_the_console() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("alone")
    logger.addHandler(handler)
    for formatter in (JsonFormatter(), ConsoleFormatter()):
        handler.setFormatter(formatter)
        try:
            raise KeyError("missing")
        except KeyError:
            logger.exception("it broke")
    as_json, first, *rest = stream.getvalue().splitlines()
    assert "KeyError: 'missing'" in json.loads(as_json)["exception"]
    assert "it broke" in first
    assert rest[-1] == "KeyError: 'missing'"


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [("a", True), ("A1._-z", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a b", False), ("a\n", False)],
)
def test_correlation_ids_are_1_to_64_plain_characters(text: str, is_valid: bool) -> None:
    assert bool(CORRELATION_PATTERN.fullmatch(text)) is is_valid


NAMES = ("text", "number", "flag", "nothing", "nested", "correlation_id")
EVENTS = [
    ("enqueue", "plain", 0.125, True, None, {"a": [1, "b"]}, "c-1"),
    ("100 % of it", NASTY, float("nan"), False, float("-inf"), Path("/x y"), ""),
    ("two words", "two words", 10**30, 1e-7, "", (1, 2.5), "c-2"),
    (NASTY, "%s %(x)s {}", -3, 1e300, "ü", [None], "c-3"),
]


@pytest.mark.parametrize("around", ["", "outer"])
@pytest.mark.parametrize("named", [NAMES, NAMES[:-1]])
@pytest.mark.parametrize("style", ["json", "console"])
def test_a_batch_of_events_is_the_lines_of_as_many_calls(
    folder: Path, style: str, named: tuple[str, ...], around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_750_000_000.25)
    if sys.version_info >= (3, 13):
        monkeypatch.setattr("time.time_ns", lambda: 1_750_000_000_250_000_000)
    configure_logging(level="INFO", log_dir=folder, style=style, to_stderr=False)
    queue = logging.getLogger(QUEUE_LOGGER)
    events = [event[: len(named) + 1] for event in EVENTS]
    with correlated(around):
        for event in events:
            queue.info(event[0].replace("%", "%%"), extra=dict(zip(named, event[1:], strict=True)))
        one_by_one = (folder / "queue_processing.log").read_bytes()
        log_events(queue, logging.INFO, named, events)
    batch = (folder / "queue_processing.log").read_bytes()[len(one_by_one) :]
    assert batch == one_by_one.replace(b"%%", b"%")
    assert len(batch.splitlines()) >= len(EVENTS)


def test_a_batch_goes_where_single_events_go_and_is_filtered_like_them(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure_logging(level="INFO", log_dir=folder, style="json", to_stderr=False)
    logging.getLogger().addHandler(caplog.handler)
    log_events(log, logging.DEBUG, ("number",), [("unheard", 1)])
    log_events(log, logging.INFO, ("number",), [])
    log_events(log, logging.WARNING, ("number",), [("heard", 1), ("heard", 2)])
    assert [(each.message, each.levelname, each.__dict__["number"]) for each in caplog.records] == [
        ("heard", "WARNING", 1), ("heard", "WARNING", 2),
    ]  # fmt: skip
    handler = logging.getLogger(QUEUE_LOGGER).handlers[0]
    handler.addFilter(lambda each: each.__dict__["number"] != 2)
    log_events(logging.getLogger(QUEUE_LOGGER), logging.INFO, ("number",), [("one", 1), ("two", 2), ("three", 3)])
    assert [json.loads(line)["message"] for line in lines(folder / "service.log")] == ["heard", "heard"]
    assert [json.loads(line)["message"] for line in lines(folder / "queue_processing.log")] == ["one", "three"]


def test_an_extra_cannot_take_the_place_of_the_lines_own_fields() -> None:
    parsed = formatted(JsonFormatter(), time="never", level=3)
    assert (parsed["level"], parsed["level_"], parsed["time_"]) == ("INFO", 3, "never")
