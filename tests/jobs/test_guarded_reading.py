"""Guarded reading: what makes no sense is set aside and named once, what is mended is forgotten, and others go on."""

import json
import logging
from pathlib import Path

import pytest

from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.jobs.guarded_reading import SET_ASIDE, guarded, guarded_lines, json_object, name_of


class Thing(Contract):
    """A line, or a file."""

    name: str
    num: int


WHOLE = b'{"name": "a", "num": 1}'


def named(path: Path) -> bool:
    """Whether readiness would name it."""
    return any(each.path == path for each in SET_ASIDE.named())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": "a", "num": 1e999}']
)
def test_a_file_that_makes_no_sense_is_set_aside_until_it_does(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "thing.json"
    assert guarded(file, Thing.model_validate_json) is None
    assert not named(file), "what is not there is no damage"
    file.write_bytes(content)
    assert guarded(file, Thing.model_validate_json) is None
    assert named(file)
    file.write_bytes(WHOLE)
    assert guarded(file, Thing.model_validate_json) == Thing(name="a", num=1)
    assert not named(file)


def test_a_folder_in_a_files_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "thing.json").mkdir()
    assert guarded(tmp_path / "thing.json", json_object) is None
    assert named(tmp_path / "thing.json")


def test_lines_go_on_past_one_that_makes_no_sense(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "things.jsonl"
    lines = [WHOLE, b"\x00\x00", json.dumps({"name": 3}).encode(), b'{"name": "b", "num": 2}']
    file.write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert [each.name for each in guarded_lines(file, lines, Thing.model_validate_json)] == ["a", "b"]
    assert named(file)
    (said,) = [each.getMessage() for each in caplog.records]
    assert name_of(file) in said


def test_a_line_that_a_kill_cut_off_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "things.jsonl"
    file.touch()
    torn = [WHOLE[:length] for length in range(1, len(WHOLE))]
    assert list(guarded_lines(file, torn, Thing.model_validate_json)) == []
    assert not named(file)


def test_another_file_in_its_place_is_another_file(tmp_path: Path) -> None:
    file = tmp_path / "thing.json"
    file.write_bytes(b"?")
    assert guarded(file, json_object) is None
    (tmp_path / "new").write_bytes(WHOLE)
    (tmp_path / "new").replace(file)
    assert not named(file), "nobody has read it yet"
