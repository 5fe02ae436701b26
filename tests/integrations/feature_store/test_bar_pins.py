"""Pins on disk: a cut-off line costs itself alone, and a disk that is full costs no reading."""

from pathlib import Path

import pytest

from ml_workbench_service.integrations.feature_store.bar_pins import PinStore


def put(pins: PinStore, file: Path, time_zone: str) -> None:
    file.write_text(f"the bars of {file.name}")
    pins.put(file, time_zone=time_zone, is_end=False, until_ms=7)


@pytest.mark.parametrize("num_kept", [1, 40, -1])
def test_a_line_cut_off_anywhere_costs_itself_alone(tmp_path: Path, num_kept: int) -> None:
    path = tmp_path / "state" / "bar_readings.jsonl"
    put(PinStore(path), tmp_path / "first.csv", "UTC")
    whole = path.read_bytes()
    put(PinStore(path), tmp_path / "second.csv", "UTC+1")
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:num_kept])
    put(PinStore(path), tmp_path / "third.csv", "UTC+2")
    found = [PinStore(path).of(tmp_path / name) for name in ("first.csv", "second.csv", "third.csv")]
    lost = None if num_kept > 0 else "UTC+1"  # whole but for its end, it counts
    assert [each and each.time_zone for each in found] == ["UTC", lost, "UTC+2"]


def test_what_cannot_be_written_holds_in_memory_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    pins = PinStore(tmp_path / "state" / "bar_readings.jsonl")
    put(pins, tmp_path / "first.csv", "UTC")
    found = pins.of(tmp_path / "first.csv")
    assert found is not None
    assert found.time_zone == "UTC"
    assert "the clock of first.csv is not kept" in caplog.text
