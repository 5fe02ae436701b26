"""Tables over HTTP: rows of versions, comparisons, curves and replays, in four formats."""

import io
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import psutil
import pytest

from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.series import VersionSeries, columns_of
from ml_workbench_service.contracts.tables import ROWS, TableFormat
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from tests.api.conftest import Clone
from tests.api.deploying import deployed
from tests.api.failures import assert_failure, paths
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version, publish_anew
from tests.service_process import SEED_PREDICT, ServiceProcess

SERIES = "/api/v1/models/small/versions/1.0.0/series"
EXACT = 1e-12


def frame(client: httpx.Client, path: str, format: TableFormat, **params: Any) -> pl.DataFrame:
    """A whole table in one of the formats; times as they are written."""
    answer = client.get(path, params=params, headers={"Accept": format.value})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].partition(";")[0] == format.value
    assert answer.headers["Content-Disposition"].startswith("attachment")
    if format is TableFormat.CSV:
        return pl.read_csv(answer.content, infer_schema_length=None)
    read = pl.read_ipc_stream if format is TableFormat.ARROW else pl.read_parquet
    found = read(io.BytesIO(answer.content))
    times = [name for name, kind in found.schema.items() if isinstance(kind, pl.Datetime)]
    texts = [pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.f").str.replace(r"\.0+$", "") + "Z" for name in times]
    return found.with_columns(texts)


def paged(client: httpx.Client, path: str, **params: Any) -> list[dict[str, Any]]:
    """Every row, page by page."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = client.get(path, params={"limit": 200, **params, **cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        rows += page["rows"]
        if page["next_cursor"] is None:
            assert len(rows) == page["num_rows"]
            return rows
        cursor = {"cursor": page["next_cursor"]}


def card_of(client: httpx.Client, version: str = "1.0.0") -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/api/v1/models/small/versions/{version}").json()
    return found


def test_a_versions_rows_add_up_to_its_card_in_every_format(api: httpx.Client) -> None:
    whole = frame(api, SERIES, TableFormat.PARQUET)
    card = card_of(api)
    backtest = card["evaluation"]["backtest"]
    assert whole["equity"].drop_nulls()[-1] == pytest.approx(backtest["net_log_return"], abs=EXACT)
    assert whole.drop_nulls("realised").height == card["split"]["num_windows"]["test"]
    for format in (TableFormat.CSV, TableFormat.ARROW):
        assert frame(api, SERIES, format, part="test").equals(whole), format
    assert paged(api, SERIES) == whole.to_dicts()
    answer = api.get(SERIES)
    page = VersionSeries.model_validate(answer.json())
    assert (page.part, page.target, len(page.rows)) == ("test", "price_change_1h", 50)
    wanted = [each.name for each in columns_of(ROWS["version"]) if each.name != "action"]
    assert [each.name for each in page.columns] == wanted == whole.columns
    assert all(each.unit and each.meaning for each in page.columns)
    assert answer.headers["ETag"] == f'"{card["digest"]}"'


@pytest.mark.parametrize(("part", "spelt"), [("validation", "stop"), ("calibration", "calibrate")])
def test_the_other_parts_were_kept_too(api: httpx.Client, part: str, spelt: str) -> None:
    found = frame(api, SERIES, TableFormat.ARROW, part=part)
    assert found.drop_nulls("realised").height == card_of(api)["split"]["num_windows"][spelt]


def test_a_stretch_is_what_limit_and_cursor_say(api: httpx.Client) -> None:
    first = api.get(SERIES, params={"limit": 3}).json()
    following = api.get(SERIES, params={"limit": 2, "cursor": first["next_cursor"]}).json()["rows"]
    assert frame(api, SERIES, TableFormat.CSV, limit=2, cursor=first["next_cursor"]).to_dicts() == following


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("*/*", TableFormat.JSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", TableFormat.JSON),
        ("text/csv;q=0.5, application/vnd.apache.parquet", TableFormat.PARQUET),
        ("TEXT/CSV; charset=utf-8", TableFormat.CSV),
        ("application/json;q=0, text/*", TableFormat.CSV),
    ],
)
def test_the_format_liked_best_is_sent(api: httpx.Client, accept: str, answered: TableFormat) -> None:
    answer = api.get(SERIES, headers={"Accept": accept}, params={"limit": 1})
    assert answer.headers["Content-Type"].partition(";")[0] == answered.value


def test_what_is_no_format_part_parameter_or_version_is_refused(api: httpx.Client) -> None:
    found = assert_failure(api.get(SERIES, headers={"Accept": "image/png"}), 406, "NOT_ACCEPTABLE")
    assert found["details"]["formats"] == [each.value for each in TableFormat]
    assert all(each.value in found["message"] for each in TableFormat)
    found = assert_failure(api.get(SERIES, params={"parts": "test"}), 422, "DATA_VALIDATION_ERROR")
    assert paths(found) == ["query.parts"]
    assert "did you mean part?" in found["message"]
    assert_failure(api.get(SERIES, params={"part": "train"}), 422, "DATA_VALIDATION_ERROR")
    assert_failure(api.get(SERIES, params={"cursor": "!"}), 422, "DATA_VALIDATION_ERROR")
    assert_failure(api.get("/api/v1/models/small/versions/7.0.0/series"), 404, "VERSION_NOT_FOUND")


def test_a_version_that_kept_no_rows_says_why(api: httpx.Client, service: ServiceProcess, clone: Clone) -> None:
    clone("rowless", "1.0.0")
    (registry_of(service) / "rowless" / "1.0.0" / EVALUATION_FILE).unlink()
    assert_failure(api.get("/api/v1/models/rowless/versions/1.0.0/series"), 409, "BUNDLE_DAMAGED")
    publish_anew(registry_of(service) / "rowless" / "1.0.0")
    found = assert_failure(api.get("/api/v1/models/rowless/versions/1.0.0/series"), 404, "SERIES_NOT_FOUND")
    assert "before versions kept their rows" in found["message"]
    found = assert_failure(api.get("/api/v1/compare?versions=rowless@1.0.0,small@1.0.0"), 404, "SERIES_NOT_FOUND")
    assert_failure(api.get("/api/v1/models/rowless/versions/1.0.0/desk-report"), 404, "SERIES_NOT_FOUND")


def test_a_desk_report_is_of_the_rows_that_are_kept(api: httpx.Client) -> None:
    answer = api.get("/api/v1/models/small/versions/1.0.0/desk-report")
    assert answer.status_code == 200, answer.text
    report, rows = answer.json(), frame(api, SERIES, TableFormat.PARQUET)
    backtest = card_of(api)["evaluation"]["backtest"]
    assert report["num_rows"] == rows.height
    assert report["num_answered"] == rows.filter(pl.col("status") == "ok").height
    assert report["turnover"]["total"] == pytest.approx(backtest["turnover"])
    assert sum(each["net"] for each in report["months"]) == pytest.approx(backtest["net_log_return"], abs=EXACT)
    assert sum(each["num_rows"] for each in report["slices"] if each["kind"] == "session") == rows.height
    page = api.get("/api/v1/models/small/versions/1.0.0/report").text
    assert "Deepest drawdowns of the account" in page


def test_versions_are_compared_on_the_rows_that_both_answered(api: httpx.Client) -> None:
    answer = api.get("/api/v1/compare", params={"versions": "small@1.0.0, small@1.1.0"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    both = [
        frame(api, f"/api/v1/models/small/versions/{each}/series", TableFormat.ARROW).filter(pl.col("status") == "ok")
        for each in ("1.0.0", "1.1.0")
    ]
    common = both[0].join(both[1], on=["as_of", "symbol"], suffix="_b")
    judged = common.drop_nulls(["realised", "realised_b"])
    assert (found["num_common_rows"], found["num_with_outcome"]) == (common.height, judged.height)
    a, b = found["versions"]
    errors = [(judged[name] - judged["realised"]) ** 2 for name in ("prediction", "prediction_b")]
    assert a["mean_loss"] == pytest.approx(errors[0].mean(), rel=1e-9)
    assert a["skill"] == pytest.approx(1 - errors[0].mean() / (judged["realised"] ** 2).mean(), abs=1e-9)
    assert b["coverage"] == pytest.approx(judged["realised"].is_between(judged["lower_b"], judged["upper_b"]).mean())
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("small@1.0.0", "small@1.1.0")
    assert pair["correlation"] == pytest.approx(np.corrcoef(common["prediction"], common["prediction_b"])[0, 1])
    gain = (errors[0] - errors[1]).mean()
    test = pair["diebold_mariano"]
    assert 0 <= test["p_value"] <= 1
    assert np.sign(test["statistic"]) == np.sign(gain)
    for compared, version in ((a, "1.0.0"), (b, "1.1.0")):
        evaluation = card_of(api, version)["evaluation"]
        if compared["num_rows"] == found["num_common_rows"]:  # nothing was left out: the card's own figures
            assert compared["net_log_return"] == pytest.approx(evaluation["backtest"]["net_log_return"], abs=EXACT)
            assert compared["sharpe"] == pytest.approx(evaluation["backtest"]["sharpe"], rel=1e-6)


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ("small@1.0.0", "2 to 8"),
        ("small@1.0.0,small@1.0.0", "each once"),
        ("small,small@1.0.0", "write versions as"),
        ("../x@1.0.0,small@1.0.0", "write versions as"),
    ],
)
def test_what_names_no_versions_to_compare_is_refused(api: httpx.Client, versions: str, says: str) -> None:
    found = assert_failure(api.get("/api/v1/compare", params={"versions": versions}), 422, "DATA_VALIDATION_ERROR")
    assert says in found["message"]


def test_versions_with_nothing_in_common_are_refused_with_the_reason(
    api: httpx.Client, service: ServiceProcess
) -> None:
    root = registry_of(service)
    source = root / "small" / "1.0.0"
    for model_id, changes in {
        "daily_one": {"timeframe": "1d"}, "yen_one": {"symbols": ["USD/JPY"]},
        "calm_one": {"target": "volatility_1h", "evaluation": {**card_of(api)["evaluation"], "backtest": None}},
    }.items():  # fmt: skip
        copy_version(source, root, model_id, "1.0.0", **changes)
    for model_id, says in {
        "daily_one": "timeframes are 1d and 1h",
        "yen_one": "no symbol",
        "calm_one": "target",
    }.items():
        answer = api.get("/api/v1/compare", params={"versions": f"{model_id}@1.0.0,small@1.0.0"})
        found = assert_failure(answer, 422, "DATA_VALIDATION_ERROR")
        assert says in found["message"]
        assert found["details"]["errors"][0]["code"] == "nothing_in_common"


def test_a_trainings_curves_tell_every_epoch(api: httpx.Client) -> None:
    card = card_of(api)
    path = f"/api/v1/jobs/{card['lineage']['job_id']}/curves"
    found = api.get(path).json()
    assert [row["epoch"] for row in found["rows"]] == [1, 2] == list(range(1, card["epochs_run"] + 1))
    assert (found["num_steps"], found["is_thinned"]) == (2, False)
    for row in found["rows"]:
        assert row["train_loss"] > 0
        assert row["validation_loss"] > 0
        assert (row["seed"], row["learning_rate"]) == (0, card["hyperparameters"]["learning_rate"])
        assert "validation_skill" in row
    table = frame(api, path, TableFormat.CSV)
    assert table.to_dicts() == found["rows"]
    assert_failure(api.get(path.replace("curves", "series")), 404, "SERIES_NOT_FOUND")
    assert_failure(api.get("/api/v1/jobs/nobody/curves"), 404, "JOB_NOT_FOUND")


def test_a_replay_says_row_by_row_what_the_version_says_of_its_own_test_part(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    model_id = clone("row_by_row", "1.0.0")
    deployed(api, model_id, "1.0.0", monitoring_level="low")
    own = frame(api, SERIES, TableFormat.ARROW)
    first, last = (datetime.fromisoformat(own["as_of"][place]) for place in (0, 120))
    body = {
        "model_id": model_id, "symbols": ["EUR/USD", "GBP/USD"],
        "start_date": iso(first - timedelta(hours=1)), "end_date": iso(last),
    }  # fmt: skip
    job = api.post("/api/v1/replays", json=body).json()
    done = service.wait_for_job(job["id"])
    assert done["status"] == "succeeded", done["error"]
    path = f"/api/v1/jobs/{job['id']}/series"
    rows = frame(api, path, TableFormat.ARROW)
    assert rows.height == done["result"]["num_published"]
    assert (rows["status"] == "abstain").sum() == done["result"]["num_abstained"]
    assert paged(api, path) == rows.to_dicts()
    both = rows.join(own, on=["as_of", "symbol"], suffix="_own").filter(pl.col("status") == pl.col("status_own"))
    assert both.height > 60
    known = both.drop_nulls(["realised", "realised_own"])
    assert known.height > 60
    np.testing.assert_allclose(known["realised"], known["realised_own"], rtol=1e-9)
    answered = both.filter(pl.col("status") == "ok")
    scale = answered["prediction_own"].std()
    assert isinstance(scale, float)
    np.testing.assert_allclose(answered["prediction"], answered["prediction_own"], atol=0.02 * scale)
    same = both.filter((pl.col("position") == pl.col("position_own")) & pl.col("gross").is_not_null())
    np.testing.assert_allclose(same["gross"], same["gross_own"], atol=1e-12)
    np.testing.assert_allclose((rows["gross"] - rows["cost"] - rows["net"]).drop_nulls(), 0.0, atol=1e-15)
    assert_failure(api.get(path.replace("series", "curves")), 404, "SERIES_NOT_FOUND")


@pytest.mark.parametrize("batch", [False, True])
def test_an_answer_that_is_never_enqueued_leaves_no_trace(
    api: httpx.Client, service: ServiceProcess, clone: Clone, batch: bool
) -> None:
    model_id = clone(f"unseen_{int(batch)}", "1.0.0")
    deployed(api, model_id, "1.0.0", monitoring_level="high")
    path = f"/api/v1/models/{model_id}/predict{'/batch' if batch else ''}"
    question = {**SEED_PREDICT, "price": 1.1, "as_of": iso(service.clock.now())}
    body = {"items": [question, {**question, "symbol": "GBP/USD"}]} if batch else question

    def traces() -> list[Any]:
        lines = [line for line in api.get("/metrics").text.splitlines() if f'model_id="{model_id}"' in line]
        kept = api.get("/api/v1/predictions", params={"model_id": model_id}).json()["predictions"]
        queue = api.get("/api/v1/queue").json()
        log = (service.folder / "logs" / "service.log").read_text().count(model_id + '"')
        card = api.get(f"/api/v1/models/{model_id}/versions/1.0.0").json()
        intervals = sorted((service.folder / "state" / "adaptive").glob(f"{model_id}/*"))
        return [lines, kept, queue["groups"][0]["enqueued"], log, card["live_intervals"], intervals]

    before = traces()
    answer = api.post(path, params={"enqueue": "never"}, json=body)
    assert answer.status_code == 200, answer.text
    records = answer.json()["predictions"] if batch else [answer.json()]
    assert {record["status"] for record in records} <= {"ok", "abstain"}
    assert {record["role"] for record in records} == {"champion"}
    assert traces() == before
    kept = api.post(path, json=body).json()
    again = kept["predictions"] if batch else [kept]
    for one, other in zip(records, again, strict=True):
        assert {**one, "prediction_id": "", "timestamp": "", "metadata": ""} == {
            **other, "prediction_id": "", "timestamp": "", "metadata": "",
        }  # fmt: skip
    deadline = time.monotonic() + 30
    while traces()[1] == before[1] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert traces()[1] != before[1], "one that may be kept is"
    rows = frame(api, "/api/v1/predictions", TableFormat.CSV, model_id=model_id)
    listed = api.get("/api/v1/predictions", params={"model_id": model_id}).json()["predictions"]
    assert rows["prediction_id"].to_list() == [each["prediction_id"] for each in listed]
    assert rows["outcome.state"].to_list() == [each["outcome"]["state"] for each in listed]
    assert rows["as_of"].to_list() == [each["as_of"] for each in listed]
    assert_failure(api.post(path, params={"enqueued": "never"}, json=body), 422, "DATA_VALIDATION_ERROR")


@pytest.mark.parametrize("path", ["features/EURUSD", "labels/EURUSD"])
def test_features_and_labels_come_as_tables(api: httpx.Client, path: str) -> None:
    query = {"start_date": "2025-02-03T00:00:00Z", "end_date": "2025-02-08T00:00:00Z", "timeframe": "1h"}
    query |= {"target": "price_change_1h"} if path.startswith("labels") else {"features": "close,sma_20"}
    plain = api.get(f"/api/v1/{path}", params=query).json()
    for format in (TableFormat.CSV, TableFormat.ARROW, TableFormat.PARQUET):
        table = frame(api, f"/api/v1/{path}", format, **query)
        assert table["timestamp"].to_list() == plain["timestamps"]
        assert table["available_at"].to_list() == plain["available_at"]
        columns = {"label": plain["labels"]} if path.startswith("labels") else plain["features"]
        for name, values in columns.items():
            assert table[name].to_list() == values, (format, name)


@pytest.fixture
def alone(service: ServiceProcess, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of its own that has answered nothing yet."""
    copy_version(registry_of(service) / "small" / "1.0.0", tmp_path / "registry", "small", "1.0.0")
    running = ServiceProcess(tmp_path, AGENT_AUTOSTART="false").start()
    yield running
    running.close()


def table_processes(service: ServiceProcess) -> list[psutil.Process]:
    assert service.process is not None
    children = psutil.Process(service.process.pid).children()
    return [each for each in children if any("table_worker" in word for word in each.cmdline())]


@pytest.mark.more
def test_tables_cost_the_service_no_library_and_its_helper_ends_with_it(alone: ServiceProcess) -> None:
    ranged = "timeframe=1h&start_date=2025-02-03T00:00:00Z&end_date=2025-02-04T00:00:00Z"
    market = (
        f"/api/v1/features/EURUSD?{ranged}&features=rsi_14",
        f"/api/v1/labels/EURUSD?{ranged}&target=direction_1h",
    )
    for format in TableFormat:
        for address in (SERIES, *market):
            alone.client.get(address, headers={"Accept": format.value}).raise_for_status()
    assert alone.process is not None
    mapped = Path(f"/proc/{alone.process.pid}/maps").read_text()
    assert "numpy" in mapped
    assert not any(name in mapped for name in ("polars", "pyarrow", "libarrow", "talib"))
    (helper,) = table_processes(alone)
    os.kill(helper.pid, signal.SIGKILL)
    helper.wait(timeout=30)
    assert alone.client.get(SERIES).status_code == 200
    (helper,) = table_processes(alone)
    alone.kill()
    helper.wait(timeout=60)
