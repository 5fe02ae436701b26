"""`data check`, `doctor`, `backup` and `restore`: what works where no service runs."""

import socket
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock

from common_lib.command_line import ExitCode
from ml_workbench_service.cli.checks import machine, places
from ml_workbench_service.settings import Settings
from tests.cli.conftest import Command
from tests.integrations.feature_store.bar_files import bars_frame, write_metatrader, write_plain
from tests.service_process import free_port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bars"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEATURE_STORE_URL", "REDIS_URL", "BARS_TIMEZONE", "EXPERIMENT_TRACKING_URI", "API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("STATE_DIR", "MODEL_REGISTRY_PATH", "LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PORT", str(free_port()))


def test_every_good_file_is_told_decision_by_decision(command: Command, folder: Path) -> None:
    frame = bars_frame(num_weeks=30)
    write_metatrader(folder / "EURUSD_H1.csv", frame, zone="America/New_York", added_hours=7)
    other = bars_frame(seed=2, level=1.25)
    write_plain(folder, "GBPUSD_1h.csv", other, sentiment=[1.5] * len(other))
    checked = command("data", "check", str(folder))
    assert checked.code == 0, checked.err
    assert "EURUSD_H1.csv: read" in checked.out
    assert "proven by the weeks of the files" in checked.out
    assert "the file says so" in checked.out
    found = {each["origin"]: each for each in command("data", "check", str(folder), "--json").json["series"]}
    assert found["EURUSD_H1.csv"]["num_rows"] == len(frame)
    assert "sentiment" in found["GBPUSD_1h.csv"]["columns"]
    assert {path.name for path in folder.iterdir()} == {"EURUSD_H1.csv", "GBPUSD_1h.csv"}, "nothing is written"


def _spreadsheet(folder: Path) -> str:
    (folder / "EURUSD_1h.xlsx").write_bytes(b"PK\x03\x04")
    return "is a spreadsheet; save it as CSV"


def _thousands(folder: Path) -> str:
    rows = [
        "timestamp;open;high;low;close",
        *(f"2024-07-0{day}T00:00:00Z;1.234,5;1.2.3;1.100;1.2" for day in (1, 2, 3)),
    ]
    (folder / "XAUUSD_1d.csv").write_text("\n".join(rows))
    return "XAUUSD_1d.csv"


def _unclear_clock(folder: Path) -> str:
    text = write_plain(folder, "EURUSD_1h.csv", bars_frame(num_weeks=1)[:30]).read_text()
    (folder / "EURUSD_1h.csv").write_text(text.replace("Z,", ","))
    return "BARS_TIMEZONE"


def _unnamed(folder: Path) -> str:
    write_plain(folder, "my data.csv", bars_frame(num_weeks=1))
    return "my data.csv: not read"


def _torn_parquet(folder: Path) -> str:
    (folder / "EURUSD_1h.parquet").write_bytes(b"PAR1 and nothing more")
    return "EURUSD_1h.parquet: not read"


def _empty(folder: Path) -> str:
    (folder / "EURUSD_1h.csv").write_text("")
    return "EURUSD_1h.csv: not read"


@pytest.mark.parametrize("spoil", [_spreadsheet, _thousands, _unclear_clock, _unnamed, _torn_parquet, _empty])
def test_a_file_that_gives_no_bars_ends_with_1_and_its_reason(command: Command, folder: Path, spoil: object) -> None:
    write_plain(folder, "GBPUSD_1h.csv", bars_frame(num_weeks=4, seed=2, level=1.25))
    (folder / ".DS_Store").write_bytes(b"")
    told = spoil(folder)  # type: ignore[operator]
    checked = command("data", "check", str(folder))
    assert checked.code == ExitCode.FAILED
    assert told in checked.out
    assert "1 of 2 files give no bars" in checked.err
    assert "GBPUSD_1h.csv: read" in checked.out
    found = command("data", "check", str(folder), "--json")
    assert found.code == ExitCode.FAILED
    assert len(found.json["ignored"]) == 2


def test_a_pandas_index_without_a_name_is_read(command: Command, folder: Path) -> None:
    frame = bars_frame(num_weeks=4)
    times = pl.from_epoch(frame["opened_ms"], "ms").dt.strftime("%Y-%m-%d %H:%M:%S+00:00")
    table = frame.drop("opened_ms").rename({name: name.title() for name in ("open", "high", "low", "close")})
    table.insert_column(0, times.alias("index")).write_csv(folder / "EURUSD_1h.csv")
    text = (folder / "EURUSD_1h.csv").read_text()
    (folder / "EURUSD_1h.csv").write_text(text.replace("index,", ",", 1))
    assert command("data", "check", str(folder)).code == 0


def test_a_folder_that_is_none_says_what_to_name(command: Command, folder: Path) -> None:
    empty = command("data", "check", str(folder))
    assert (empty.code, "there is no file in" in empty.err) == (ExitCode.FAILED, True)
    file = write_plain(folder, "EURUSD_1h.csv", bars_frame(num_weeks=1))
    assert "name its folder" in command("data", "check", str(file)).err
    assert command("data", "check", str(folder / "nowhere")).code == ExitCode.USAGE
    assert "BARS_TIMEZONE" in command("data", "check", str(folder), "--bars-timezone", "Moon").err


def test_the_doctor_finds_a_healthy_place(command: Command) -> None:
    found = command("doctor", "--json")
    states = {each["name"]: each["state"] for each in found.json["findings"]}
    assert found.code == 0, found.out
    assert states["service"] == "off"
    assert {"Python", "packages", "memory", "STATE_DIR", "state", "model registry", "feature store", "Redis",
            "MLflow", "port"} <= states.keys()  # fmt: skip


def test_the_doctor_finds_what_is_broken_and_says_what_to_do(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_STORE_URL", f"file://{tmp_path}/nowhere")
    monkeypatch.setenv("REDIS_URL", f"redis://:secret-word@127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("EXPERIMENT_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    (tmp_path / "log_dir").write_text("a file")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("PORT", str(taken.getsockname()[1]))
        shown = command("doctor")
        found = {each["name"]: each for each in command("doctor", "--json").json["findings"]}
    assert shown.code == ExitCode.FAILED
    assert "secret-word" not in shown.out + shown.err
    for name in ("feature store", "Redis", "MLflow", "LOG_DIR", "port"):
        assert found[name]["state"] == "broken", name
        assert found[name]["next_step"], name


def test_the_doctor_names_a_variable_that_is_wrong_and_looks_at_the_rest(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREDICTION_QUEUE_CAPACITY", "none")
    found = command("doctor", "--json")
    assert found.code == ExitCode.FAILED
    first = found.json["findings"][0]
    assert (first["name"], first["detail"].partition(":")[0]) == ("environment", "PREDICTION_QUEUE_CAPACITY")
    assert {"Python", "service"} <= {each["name"] for each in found.json["findings"]}


def test_who_works_in_the_state_folder_is_seen_and_left_alone(tmp_path: Path) -> None:
    settings = Settings()
    assert "yet" in places.state_lock(settings)[0].detail
    settings.STATE_DIR.mkdir()
    with FileLock(settings.STATE_DIR / "service.lock"):
        assert "a service works in" in places.state_lock(settings)[0].detail
    assert "no service works in" in places.state_lock(settings)[0].detail
    (settings.STATE_DIR / ".restoring").mkdir()
    assert places.state_lock(settings)[0].state == "broken"


def test_a_missing_package_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.packages()[0].state == "ok"
    monkeypatch.setattr(machine, "_requirements", lambda: ["not-there>=2", "typer<0.1"])
    told = machine.packages()[0]
    assert told.state == "broken"
    assert "not-there is missing" in told.detail
    assert "typer is 0." in told.detail


def test_a_backup_is_written_and_brought_back(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(tmp_path / "backups" / "today.tar.gz")
    assert "is no STATE_DIR" in command("backup", archive).err
    (tmp_path / "state_dir").mkdir()
    (tmp_path / "state_dir" / "kept.json").write_text("{}")
    written = command("backup", archive, "--json")
    assert written.json["num_files"] == 1
    assert command("backup", archive).code == ExitCode.REFUSED
    assert "not empty" in command("restore", archive).err
    for name in ("STATE_DIR", "MODEL_REGISTRY_PATH"):
        monkeypatch.setenv(name, str(tmp_path / f"new_{name.lower()}"))
    assert command("restore", archive).code == 0
    assert (tmp_path / "new_state_dir" / "kept.json").read_text() == "{}"
