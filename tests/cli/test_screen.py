"""What is written: tables that fit, JSON for scripts, nothing that moves the cursor."""

import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable
from datetime import UTC, datetime
from fcntl import ioctl

import pytest
from rich.cells import cell_len

from common_lib.screen import Screen, clean, shown
from tests.cli.conftest import environment

ROWS = [
    {"id": "lstm_price_predictor", "verdict": "no_skill", "when": datetime(2025, 3, 1, 12, tzinfo=UTC), "r2": 0.012345},
    {"id": "gru", "verdict": "insufficient_data", "when": datetime(2025, 3, 2, tzinfo=UTC), "r2": -0.5},
]
COLUMNS = {"id": "id", "verdict": "verdict", "when": "when", "r2": "r2", "note": lambda row: "some words of a note"}
DRAW = f"""
from datetime import datetime, timezone
import datetime as d
UTC = d.UTC
datetime = d
from common_lib.screen import Screen
rows = {ROWS!r}
Screen().rows("models", rows, {{
    "id": "id", "verdict": "verdict", "when": "when", "r2": "r2", "note": lambda row: "some words of a note"}})
with Screen().bar("working") as bar:
    bar.state("running")
    bar.step(3, 10, "loss 0.5")
"""


def on_a_terminal(width: int, script: str, **more: str) -> str:
    """What a script writes to a terminal so wide."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    ids = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", script],
        environment(**{"TERM": "xterm", **more}),
        file_actions=[(os.POSIX_SPAWN_DUP2, follower, number) for number in (0, 1, 2)],
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # how Linux says that nobody has the terminal open any more
            break
        if not part:
            break
        written += part
    os.close(leader)
    assert os.waitstatus_to_exitcode(os.waitpid(ids, 0)[1]) == 0, written.decode()
    return written.decode()


def without_codes(text: str) -> list[str]:
    """Lines as they end up on the screen, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rpartition("\r")[2].rstrip() for line in plain.replace("\r\n", "\n").split("\n")]


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_tables_fit_the_terminal_and_lose_nothing(width: int) -> None:
    written = on_a_terminal(width, DRAW)
    lines = without_codes(written)
    assert max(map(cell_len, lines)) <= width
    text = "".join("".join(lines).split())
    for each in ("lstm_price_predictor", "no_skill", "insufficient_data", "2025-03-01", "0.012345", "-0.5"):
        assert each in text
    assert "\x1b[1m" in written
    assert "3/10" in written or width == 30


def test_no_color_and_dumb_terminals_are_heard() -> None:
    table = DRAW.partition("with Screen")[0]
    assert "\x1b[" in on_a_terminal(80, table)
    assert "\x1b[" not in on_a_terminal(80, table, NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal(80, table, TERM="dumb")


def test_a_pipe_gets_whole_rows_without_codes(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().rows("models", ROWS, COLUMNS)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "verdict", "when", "r2", "note"]
    assert first.startswith("lstm_price_predictor  no_skill")
    assert second.endswith("-0.5  some words of a note")


def test_json_is_one_ascii_document_with_the_values_untouched(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).rows("models", [{"id": "ä", "r2": 0.012345678901234567, "none": None}], COLUMNS, more=[1])
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"models": [{"id": "ä", "r2": 0.012345678901234567, "none": None}], "more": [1]}
    Screen(as_json=True).rows("models", [], COLUMNS)
    assert json.loads(capsys.readouterr().out) == {"models": []}


def test_an_empty_list_is_a_sentence_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().rows("models", [], COLUMNS, nothing="no models yet")
    assert capsys.readouterr() == ("", "no models yet\n")


@pytest.mark.parametrize("write", [Screen().note, Screen().error, lambda text: Screen().facts(text, {"name": text})])
def test_names_from_elsewhere_cannot_move_the_cursor(
    write: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("a\x1b[2Jb\x07\u202ec [red]d[/red]")
    out, err = capsys.readouterr()
    assert "a\\x1b[2Jb\\x07\\u202ec [red]d[/red]" in out + err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (datetime(2025, 3, 1, 12, 0, 5, tzinfo=UTC), "2025-03-01 12:00:05Z"),
        (0.1 + 0.2, "0.3"),
        ({"a": 1.5, "b": [1, 2]}, "a 1.5, b 1, 2"),
        ((), ""),
    ],
)
def test_values_read_as_people_write_them(value: object, text: str) -> None:
    assert shown(value) == text
    assert clean("a\nb") == "a\nb"
