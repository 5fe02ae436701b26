"""Request files: what people write in JSON and YAML is what is sent."""

from pathlib import Path

import pytest

from common_lib.command_line import UsageMistake
from ml_workbench_client.cli.opening import given, listed, settings
from ml_workbench_client.cli.request_files import read_request


def test_yaml_keeps_dates_as_texts_and_reads_numbers_as_everybody_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "request.yaml"
    path.write_text(
        "start_date: 2023-01-01T00:00:00Z\nend_date: 2025-03-01\nsymbols: [EUR/USD]\n"
        "hyperparameters: {learning_rate: 1e-3, dropout: .2, lstm_units: 64, bias: -2.5E+1, name: 1h}\n"
    )
    assert read_request(str(path)) == {
        "start_date": "2023-01-01T00:00:00Z",
        "end_date": "2025-03-01",
        "symbols": ["EUR/USD"],
        "hyperparameters": {"learning_rate": 0.001, "dropout": 0.2, "lstm_units": 64, "bias": -25.0, "name": "1h"},
    }


def test_json_with_a_mark_at_its_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(b'\xef\xbb\xbf{"name": "x"}')
    assert read_request(str(path)) == {"name": "x"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"name": }', "line 1, column 10"),
        ("a.json", "[1]", "holds no request"),
        ("a.json", '{"name": "a", "name": "b"}', "has name twice"),
        ("a.yaml", "a: [1", "line 1"),
        ("a.yaml", "just words", "holds no request"),
        ("a.yaml", "a: !!python/object:os.system x", "is no YAML"),
        ("a.yaml", "a: 1\nb: 2\na: 3", "has a twice"),
    ],
)
def test_what_is_no_request_is_refused_with_the_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageMistake, match=told):
        read_request(str(tmp_path / name))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(UsageMistake, match="UTF-8"):
        read_request(str(tmp_path / "a.json"))


def test_settings_are_json_where_they_are_that_else_text() -> None:
    assert settings(["a=64", "b=0.5", "c=true", "d=[1, 2]", "e=relu", "f=1e-3", "g=x=y"]) == {
        "a": 64, "b": 0.5, "c": True, "d": [1, 2], "e": "relu", "f": 0.001, "g": "x=y",
    }  # fmt: skip


def test_lists_are_written_with_commas_or_by_repeating() -> None:
    assert listed(["EUR/USD,GBP/USD", " USD/JPY "]) == ["EUR/USD", "GBP/USD", "USD/JPY"]
    assert given(a=None, b=[], c=0, d=False) == {"c": 0, "d": False}
