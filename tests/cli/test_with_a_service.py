"""Commands on a real service: what they show, what they hand to scripts, how they end."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from common_lib.command_line import ExitCode
from ml_workbench_client.cli.root import build
from tests.cli.conftest import Command, Ended
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

MODEL = "cli_linear"
REQUEST = f"""
name: Linear by the command line
model_id: {MODEL}
model_type: time_series
family: linear
features: [return_1, rsi_14]
target: price_change_1h
symbols: [EUR/USD]
start_date: 2024-09-01T00:00:00Z
end_date: 2025-03-01T00:00:00Z
"""
WEEK = ["--start", "2025-02-03T00:00:00Z", "--end", "2025-02-08T00:00:00Z"]
MOMENT = ["--as-of", "2025-02-05T12:00:00Z"]


@pytest.fixture(scope="module")
def request_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "request.yaml"
    path.write_text(REQUEST)
    return str(path)


@pytest.fixture(scope="module")
def trained(service: ServiceProcess, request_file: str) -> Ended:
    """How the training of the model ended."""
    url = {"WORKBENCH_URL": service.url}
    result = CliRunner().invoke(build(), ["train", "-f", request_file], env=url)
    assert result.exit_code == 0, result.stderr
    return Ended(result.exit_code, result.stdout, result.stderr)


def test_a_training_is_followed_until_its_verdict(trained: Ended, served: Command, request_file: str) -> None:
    assert f"{MODEL} 1.0.0: not_applicable" in trained.out
    assert "simulated" in trained.out
    assert "windows, about" in trained.err
    assert [line for line in trained.err.splitlines() if line.endswith(("queued", "started", "succeeded"))]
    again = served("train", "-f", request_file)
    assert again.code == ExitCode.REFUSED
    assert "force" in again.err


def test_options_lie_over_the_file_and_scripts_get_job_and_verdict(
    trained: Ended, served: Command, request_file: str
) -> None:
    ended = served("train", "-f", request_file, "--seeds", "3", "--name", "Another", "--json", "--require-skill")
    assert ended.code == ExitCode.FAILED
    assert "the verdict is not_applicable" in ended.err
    assert ended.json["evaluation"]["verdict"] == "not_applicable"
    assert ended.json["job"]["request"]["seeds"] == [3]
    assert ended.json["job"]["result"]["version"] == "1.1.0"


def test_a_request_that_is_wrong_names_every_mistake(served: Command) -> None:
    ended = served("train", "--name", "x", "--model-type", "time_serie", "--symbols", "EUR/USD", "--set", "units=3")
    assert ended.code == ExitCode.REFUSED
    assert "body.model_type" in ended.err
    assert "body.start_date" in ended.err
    as_json = served("train", "--name", "x", "--json")
    assert json.loads(as_json.err)["error_code"] == "DATA_VALIDATION_ERROR"


def test_a_job_is_started_apart_listed_cancelled_and_read(
    trained: Ended, served: Command, request_file: str, service: ServiceProcess
) -> None:
    started = served("train", "-f", request_file, "--seeds", "5,6", "--detach")
    job = started.out.strip()
    assert f"jobs watch {job}" in started.err
    assert served("jobs", "cancel", job).code == 0
    watched = served("jobs", "watch", job)
    status = service.wait_for_job(job)["status"]
    assert watched.code == (ExitCode.OK if status == "succeeded" else ExitCode.FAILED)
    assert job in served("jobs", "list", "--kind", "train").out
    assert served("jobs", "show", job, "--json").json["status"] == status
    lines = served("jobs", "events", job).out.splitlines()
    assert lines[0].endswith("queued")
    assert lines[-1].split()[1] == status
    events = [json.loads(line) for line in served("jobs", "events", job, "--json", "--after", "1").out.splitlines()]
    assert [each["seq"] for each in events] == list(range(2, len(lines) + 1))
    ended = served("jobs", "list", "--kind", "train", "--status", "succeeded", "--json").json["jobs"][-1]["id"]
    printed = served("jobs", "log", ended, "--tail", "5")
    assert printed.code == 0, "one that is cancelled before it begins has none"
    assert served("jobs", "log", ended, "--tail", "5", "--json").json["log"].splitlines() == printed.out.splitlines()


def test_models_are_listed_shown_and_named_with_their_version(trained: Ended, served: Command) -> None:
    assert MODEL in served("models", "list").out
    listed = served("models", "list", "--json", "--limit", "1").json
    assert [sorted(listed), len(listed["models"])] == [["models"], 1]
    assert "1.0.0" in served("models", "versions", MODEL).out
    shown = served("models", "show", f"{MODEL}@1.0.0")
    assert "leakage certificate  passed" in shown.out
    assert served("models", "show", f"{MODEL}@1.0.0", "--json").json["digest"].startswith("sha256:")
    missing = served("models", "show", "nowhere")
    assert (missing.code, missing.out) == (ExitCode.REFUSED, "")
    assert "no model of this id" in missing.err


def test_predictions_from_a_moment_a_table_and_a_body_agree(trained: Ended, served: Command, tmp_path: Path) -> None:
    asked = served("predict", f"{MODEL}@1.0.0", *MOMENT, "--json").json
    assert (asked["symbol"], asked["version"]) == ("EUR/USD", "1.0.0")
    for name in ("rows.csv", "rows.parquet"):
        table = str(tmp_path / name)
        written = served(
            "features", "EUR/USD", "--features", "return_1,rsi_14", "--start", "2025-02-03T00:00:00Z",
            "--end", "2025-02-05T12:00:00Z", "-o", table,
        )  # fmt: skip
        assert "60 rows are in" in written.err
        found = served("predict", f"{MODEL}@1.0.0", table, "--json")
        assert found.code == 0, found.err
        assert found.json["prediction"] == pytest.approx(asked["prediction"], abs=1e-9)
    frame = pl.read_csv(tmp_path / "rows.csv")
    body = tmp_path / "body.json"
    inputs = {name: frame[name].to_list()[-24:] for name in ("return_1", "rsi_14")}
    body.write_text(json.dumps({"inputs": inputs}))
    assert served("predict", f"{MODEL}@1.0.0", str(body)).out.startswith(f"{MODEL} 1.0.0 EUR/USD ")
    body.write_text(json.dumps([{"inputs": inputs}, {"inputs": {"nonsense": [1.0]}}]))
    batch = served("predict", MODEL, str(body))
    assert batch.code == ExitCode.FAILED
    assert "1 of 2 items failed" in batch.err
    assert "nonsense" in batch.out or "does not read" in batch.out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("return_1\n0.1\n", "has no column rsi_14"),
        ("return_1,rsi_14\n", "has no rows"),
        ("return_1,rsi_14\n0.1,\n", "column rsi_14, row 1 of the last 1: an empty cell is no number"),
        ("return_1,rsi_14\n0.1,nan\n", "nan is no number"),
        ("return_1,rsi_14\n0.1,50,7\n", "row 2: it has 3 cells"),
    ],
)
def test_a_table_that_cannot_be_sent_names_the_cell(
    trained: Ended, served: Command, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    ended = served("predict", MODEL, str(path))
    assert ended.code == ExitCode.USAGE
    assert told in ended.err


def test_a_version_goes_live_is_listed_and_rolled_back(trained: Ended, served: Command) -> None:
    gated = served("deploy", f"{MODEL}@1.0.0", "--require-skill")
    assert gated.code == ExitCode.REFUSED
    assert "skill" in gated.err
    deployed = served("deploy", f"{MODEL}@1.0.0", "--reason", "by the command line", "--monitoring", "high")
    assert deployed.out.startswith(f"{MODEL} 1.0.0 is live (local)")
    assert served("deploy", f"{MODEL}@1.1.0", "--json").json["previous_version"] == "1.0.0"
    live = served("deployments", "--model", MODEL, "--status", "live", "--json").json["deployments"]
    assert [each["version"] for each in live] == ["1.1.0"]
    assert served("rollback", MODEL).out.startswith(f"{MODEL} 1.0.0 is live")
    assert served("rollback", "nowhere").code == ExitCode.USAGE


def test_a_replay_feeds_the_queue_and_the_agent(trained: Ended, served: Command) -> None:
    ended = served("replay", f"{MODEL}@1.0.0", "--symbols", "EUR/USD", *WEEK)
    assert ended.code == 0, ended.err
    assert "num_published" in ended.out
    assert served("queue", "--json").json["balance"] == 0
    assert "agent:default" in served("queue").out
    assert served("queue", "dead-letters").err == "no dead letters\n"
    assert served("queue", "discard", "1-1").code == ExitCode.REFUSED


def test_agents_are_started_stopped_and_shown(trained: Ended, served: Command) -> None:
    made = served("agents", "create", "by-cli", "--model", MODEL, "--risk-aversion", "10", "--json")
    assert made.json["reward"]["risk_aversion"] == 10
    assert "by-cli" in served("agents", "list").out
    assert served("agents", "stop", "by-cli", "--json").json["wanted"] == "stopped"
    assert served("agents", "show", "by-cli").out.startswith("agent by-cli: ")
    assert served("agents", "start", "by-cli", "--json").json["wanted"] == "running"
    assert served("agents", "stop", "by-cli").code == 0
    learnt = served("agents", "q-table", "default", "--json").json["rows"]
    assert {"forecast", "width", "held", "best", "visits", "value_long"} <= learnt[0].keys()
    assert "rows" in served("agents", "decisions", "default", "--symbol", "EUR/USD", "--json").json
    assert served("agents", "q-table", "nobody").code == ExitCode.REFUSED
    assert served("agents", "decisions", "default", "-o", "x.txt").code == ExitCode.USAGE
    assert served("agents", "show", "nobody").code == ExitCode.REFUSED


def test_an_experiment_is_run_from_a_file_and_shown(trained: Ended, served: Command, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "search.yaml"
    base = {**yaml.safe_load(REQUEST), "model_id": "cli_search", "start_date": "2024-09-01T00:00:00Z"}
    base["end_date"] = "2025-03-01T00:00:00Z"
    space = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
    path.write_text(yaml.safe_dump({"name": "By the command line", "base": base, "search_space": space}))
    ended = served("experiments", "run", "-f", str(path), "--num-trials", "2", "--sampler", "random")
    assert ended.code == 0, ended.err
    assert "2 of 2, by random" in ended.out
    found = served("experiments", "list", "--json").json["experiments"][0]
    assert served("experiments", "show", found["id"], "--json").json["best_trial"]["value"] is not None


def test_data_features_and_labels_are_shown_and_handed_on(served: Command) -> None:
    data = served("data", "list", "--json").json
    assert {"series", "ignored"} == set(data)
    assert {"EUR/USD"} <= {each["symbol"] for each in data["series"]}
    assert "rsi_{period}" in served("features").out
    rows = served("features", "EUR/USD", "GBP/USD", "--features", "rsi_14", *WEEK).out.splitlines()
    assert rows[0].split(",")[:2] == ["symbol", "timestamp"]
    assert rows[1].split(",")[1] == "2025-02-03T00:00:00Z"
    assert {row.split(",")[0] for row in rows[1:]} == {"EUR/USD", "GBP/USD"}
    as_json = served("features", "EUR/USD", "--features", "rsi_14", *WEEK, "--json").json["rows"]
    assert as_json[0]["rsi_14"] > 0
    written = "rsi_14,zscore(close, 50)"
    found = served("features", "EUR/USD", "--features", written, *WEEK, "--json").json["rows"]
    assert found[0]["rsi_14"] == as_json[0]["rsi_14"]
    assert abs(found[0]["zscore(close, 50)"]) < 10
    labels = served("labels", "EUR/USD", "price_change_1h", *WEEK, "--json").json
    assert len(labels["labels"]) == len(labels["timestamps"])
    assert served("labels", "EUR/USD", "price_change_1h", *WEEK).out.startswith("timestamp ")
    assert served("labels", "EUR/USD", "nonsense_1h", *WEEK).code == ExitCode.REFUSED


def test_versions_meet_and_the_doctor_looks_at_the_service(served: Command, service: ServiceProcess) -> None:
    found = served("version", "--json").json
    assert found["service"] == found["client"]
    assert found["url"] == service.url
    findings = {each["name"]: each for each in served("doctor", "--json").json["findings"]}
    assert findings["service"]["state"] == "ok"
    assert findings["service's key"]["state"] == "ok"
    assert "service's redis" in findings


def test_what_a_version_achieved_is_written_and_compared(trained: Ended, served: Command, tmp_path: Path) -> None:
    rows, page = str(tmp_path / "rows.parquet"), str(tmp_path / "report.html")
    assert served("models", "series", f"{MODEL}@1.0.0", "-o", rows).code == 0
    assert {"as_of", "prediction", "realised"} <= set(pl.read_parquet(rows).columns)
    assert served("models", "series", f"{MODEL}@1.0.0").out.startswith("as_of,")
    assert served("models", "series", MODEL, "--part", "nonsense").code == ExitCode.REFUSED
    assert served("models", "report", f"{MODEL}@1.0.0", "-o", page).code == 0
    assert "<html" in Path(page).read_text(encoding="utf-8")
    short = served("models", "importance", f"{MODEL}@1.0.0")
    assert short.code == ExitCode.FAILED
    assert "larger `validation_split`" in short.err
    found = served("models", "importance", f"{MODEL}@1.0.0", "--part", "test", "--repeats", "2", "--json")
    assert (found.json["result"]["part"], found.json["result"]["num_counted"] > 0) == ("test", True)
    assert "loss added" in served("models", "importance", f"{MODEL}@1.0.0", "--part", "test", "--repeats", "1").out
    desk = served("models", "desk-report", f"{MODEL}@1.0.0")
    assert "Rank correlation of forecast and what came" in desk.out
    assert served("models", "desk-report", f"{MODEL}@1.0.0", "--json").json["version"] == "1.0.0"
    assert served("models", "compare", f"{MODEL}@1.0.0", "small@1.0.0", "--json").code == 0


def test_a_service_with_a_key_is_told_of_it(command: Command, tmp_path: Path) -> None:
    running = ServiceProcess(tmp_path, API_KEY="right-key", AGENT_AUTOSTART="false").start()
    try:
        refused = command("jobs", "list", "--url", running.url, "--api-key", "wrong-key")
        assert refused.code == ExitCode.REFUSED
        assert "wrong-key" not in refused.err
        assert command("jobs", "list", "--url", running.url, "--api-key", "right-key").code == ExitCode.OK
        found: list[dict[str, Any]] = command("doctor", "--json", "--url", running.url).json["findings"]
        told = next(each for each in found if each["name"] == "service's key")
        assert (told["state"], "WORKBENCH_API_KEY" in told["next_step"]) == ("broken", True)
    finally:
        running.close()
