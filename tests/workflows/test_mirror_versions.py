"""Tracking of versions: figures to search by, the data, and an MLmodel that answers as the service's network does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.evaluation import (
    AddsOverLinear,
    BacktestReport,
    Certificate,
    CertificateCheck,
    Comparison,
    Evaluation,
    IntervalReport,
    Significance,
    SignificanceTest,
)
from ml_workbench_service.evaluation.desk.report import report_of
from ml_workbench_service.integrations.experiment_tracker.tracker import ExperimentTracker
from ml_workbench_service.integrations.experiment_tracker.version_summary import desk_figures_of, figures_of, legal_name
from ml_workbench_service.jobs.job import JobFolder
from tests.evaluation.desk.planted_rows import planted
from tests.integrations.mlflow_server import MlflowServer
from tests.integrations.model_cards import MOMENT, model_card
from tests.learning.bundle.small_network import SYMBOLS, scaler_of, served, windows, write_network
from tests.workflows.test_mirror_to_mlflow import House, runs_of
from tests.workflows.test_mirror_to_mlflow import client as client
from tests.workflows.test_mirror_to_mlflow import house as house
from tests.workflows.test_mirror_to_mlflow import server as server

pytestmark = [
    pytest.mark.more,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred"),  # MLflow, of its own classes
]
FINGERPRINT = "sha256:" + "0123456789abcdef" * 4
LAST_KNOWN = MOMENT.replace(year=2025, month=2)
WORDLESS = SignificanceTest(statistic=2.5, p_value=0.006, num_moments=900, lag=1)


def judged(sharpe: float | None = 0.8, answer: str = "yes") -> Evaluation:
    """An evaluation with everything that a forecaster's has."""
    return Evaluation(
        test={"mse": 2e-6},
        baselines={},
        skill={},
        verdict="skill",
        reason="p = 0.01",
        verdict_rules=2,
        proof="recomputed",
        economic="profitable",
        adds_over_linear=AddsOverLinear(answer=answer, gain=0.01),
        answered_share=0.99,
        comparisons=(
            Comparison(
                baseline="drift", loss="squared_error", model_loss=1.9, baseline_loss=2.0, skill=0.05,
                diebold_mariano=WORDLESS,
            ),
        ),
        significance=Significance(
            baseline="drift", p_value=0.006, looks=2, adjusted_p_value=0.012, alpha=0.025, num_moments=900,
            num_independent=900, power=0.9,
        ),
        interval=IntervalReport(level=0.9, coverage=0.91, coverage_by_tercile={}, mean_width=0.002),
        backtest=BacktestReport(
            net_log_return=0.04, gross_log_return=0.06, sharpe=sharpe, max_drawdown=0.02, turnover=80.0, num_trades=40,
            share_in_market=0.5, mean_cost_bp=0.4, total_cost=0.02, swap_cost=0.0, num_days=200,
        ),
    )  # fmt: skip


def write_version(draft: Path) -> None:
    """A network of three symbols with its recipe."""
    write_network(draft / "model.onnx")
    write_recipe(draft)


def write_recipe(draft: Path) -> None:
    recipe = {
        "scaler": scaler_of(SYMBOLS).to_json(),
        "request": {"start_date": "2020-01-01T00:00:00Z"},
        "last_known_ms": to_ms(LAST_KNOWN),
    }
    (draft / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")


def publish(
    house: House, version: str = "1.0.0", write: Callable[[Path], object] = write_version, **fields: Any
) -> JobFolder:
    """A finished training whose version has a network that can be read."""
    folder = house.train(version)
    folder.append("started", pid=1, attempt=1)
    folder.append("progress", step=7, total=7, metrics={"train_loss": 0.25})
    card = {
        "metrics": {"mse": 2e-6},
        "symbols": SYMBOLS,
        "features": ("close", "signal"),
        "evaluation": judged(),
        "certificate": Certificate.of((CertificateCheck(name="labels", status="passed", detail="the same"),)),
        "split": {
            "borders": {"stop": "2024-01-01T00:00:00Z", "calibrate": "2024-05-01T00:00:00Z", "test": MOMENT},
            "num_windows": {"train": 800, "stop": 50, "calibrate": 50, "test": 100},
            "num_purged": 0,
        },
        "lineage": {"job_id": folder.id, "data_fingerprint": FINGERPRINT, "seeds": (0,), "library_versions": {}},
    }
    house.publish(folder, version, write=write, **{**card, **fields})
    return folder


def search(client: Any, house: House, wanted: str) -> list[Any]:
    """Runs of this test's model that a user finds by these words."""
    experiment = client.get_experiment_by_name("ml-workbench")
    return list(client.search_runs([experiment.experiment_id], f"tags.model_id = '{house.model_id}' and {wanted}"))


def test_versions_are_found_by_their_figures_and_their_verdicts_words(
    house: House, server: MlflowServer, client: Any
) -> None:
    good = publish(house)
    poor = publish(house, version="1.1.0", evaluation=judged(-0.2, "no"))
    unsure = publish(house, version="1.2.0", evaluation=judged(None, "insufficient_data"))
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is False

    def found(wanted: str) -> list[str]:
        return [run.data.tags["job_id"] for run in search(client, house, wanted)]

    assert found("metrics.sharpe > 0.5") == [good.id]
    assert found("metrics.sharpe < 0.5") == [poor.id]  # who has none is in neither
    assert found("metrics.adds_over_linear = 0") == [poor.id]
    assert found("tags.adds_over_linear = 'insufficient_data'") == [unsure.id]
    assert set(found("metrics.adjusted_p_value <= 0.025 and tags.proof = 'recomputed'")) == {
        good.id, poor.id, unsure.id,
    }  # fmt: skip
    (run,) = runs_of(client, good)
    expected = {
        "net_return": 0.04, "sharpe": 0.8, "p_value": 0.006, "adjusted_p_value": 0.012, "power": 0.9, "skill": 0.05,
        "coverage": 0.91, "adds_over_linear": 1.0, "num_hypotheses": 2.0, "answered_share": 0.99, "mse": 2e-6,
    }  # fmt: skip
    assert expected.items() <= run.data.metrics.items()
    assert [point.step for point in client.get_metric_history(run.info.run_id, "sharpe")] == [0]
    words = {"verdict": "skill", "certificate": "passed", "economic": "profitable", "hardest_baseline": "drift"}
    assert words.items() <= run.data.tags.items()


def test_names_of_metrics_need_no_quotes() -> None:
    card = model_card(metrics={"EUR/USD_sharpe": 0.5, "mse": None, "recall@1": 0.1})
    assert figures_of(card) == {"EUR_USD_sharpe": 0.5, "recall_1": 0.1, "epochs_run": 1.0}


def test_a_desk_report_adds_its_figures_and_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "desk_report.json"
    assert desk_figures_of(file, without=()) == {}
    found = report_of(planted(seed=9))
    file.write_text(found.model_dump_json(), encoding="utf-8")
    assert found.turnover is not None
    figures = desk_figures_of(file, without=("rank_ic",))
    assert "rank_ic" not in figures
    assert figures["turnover_per_year"] == found.turnover.per_year
    assert {"rank_ic_error", "fifths_spread", "mean_holding_bars", "break_even_spread_multiple"} <= figures.keys()
    assert all(legal_name(each) == each for each in figures)


def test_a_run_names_its_data(house: House, server: MlflowServer, client: Any) -> None:
    import mlflow

    folder = publish(house)
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    (run,) = runs_of(client, folder)
    by_context = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert set(by_context) == {"training", "validation", "calibration", "test"}
    test = by_context["test"]
    assert (test.name, test.digest) == (f"{', '.join(SYMBOLS)} 1h test", FINGERPRINT[7:39])
    assert json.loads(test.profile) == {"num_windows": 100}
    assert mlflow.data.get_source(test).to_dict()["tags"] == {
        "symbols": ", ".join(SYMBOLS),
        "timeframe": "1h",
        "data_source": "file",
        "part": "test",
        "from": "2025-03-03T00:00:00Z",
        "until": "2025-02-03T00:00:00Z",
        "data_fingerprint": FINGERPRINT,
    }
    training = json.loads(by_context["training"].source)["tags"]
    assert (training["from"], training["until"]) == ("2020-01-01T00:00:00Z", "2024-01-01T00:00:00Z")


def load(server: MlflowServer, address: str) -> Any:
    """What a user's own process loads."""
    import mlflow

    with pytest.MonkeyPatch.context() as patched:  # what is set by `mlflow.set_…` stays set for every test after this
        patched.setenv("MLFLOW_TRACKING_URI", server.url)
        patched.setenv("MLFLOW_REGISTRY_URI", server.url)
        return mlflow.pyfunc.load_model(address)


def test_the_champion_loads_from_mlflow_and_answers_as_the_network_does(
    house: House, server: MlflowServer, client: Any
) -> None:
    folder = publish(house)
    house.deploy("1.0.0")
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    model = load(server, f"models:/{house.model_id}@champion")
    rows_NTF, symbols = windows(60), [SYMBOLS[number % 3] for number in range(60)]
    found = model.predict({"features": rows_NTF, "symbol": np.array(symbols)})
    bundle = house.registry.folder(house.model_id, "1.0.0")
    wanted = served(bundle / "model.onnx", scaler_of(SYMBOLS), symbols, rows_NTF)
    np.testing.assert_allclose(found["outputs"], wanted[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["last_rows"], wanted[1], rtol=1e-6, atol=1e-6)
    assert model.metadata.metadata["features"] == ["close", "signal"]
    assert model.metadata.metadata["label_scale"] == {symbol: [0.001] for symbol in SYMBOLS}
    example = model.input_example
    assert example["features"].shape == (1, 24, 2)
    assert np.isfinite(model.predict(example)["outputs"]).all()
    (run,) = runs_of(client, folder)
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (logged.source_run_id, str(logged.status), logged.name) == (run.info.run_id, "READY", house.model_id)
    assert (logged.model_type, logged.params) == ("time_series", run.data.params)
    assert {"sharpe": 0.8, "coverage": 0.91}.items() <= {each.key: each.value for each in logged.metrics}.items()
    assert {each.dataset_name for each in logged.metrics} == {f"{', '.join(SYMBOLS)} 1h test"}
    assert json.loads(logged.tags["mlflow.modelVersions"])[0]["name"] == house.model_id


class Dying(ExperimentTracker):
    """Loses its server after so many of the calls that hand a version over."""

    calls_left = 0

    def _lives(self) -> None:
        if self.calls_left == 0:
            raise UnavailableError("gone")
        self.calls_left -= 1

    def log_inputs(self, *args: Any) -> None:
        super().log_inputs(*args)
        self._lives()

    def open_model(self, *args: Any, **named: Any) -> str:
        model = super().open_model(*args, **named)
        self._lives()
        return model

    def close_model(self, *args: Any) -> None:
        super().close_model(*args)
        self._lives()

    def log(self, *args: Any, **named: Any) -> None:
        super().log(*args, **named)
        if named:
            self._lives()

    def register(self, *args: Any, **named: Any) -> str:
        number = super().register(*args, **named)
        self._lives()
        return number


def test_whenever_the_tracker_dies_everything_is_there_once(house: House, server: MlflowServer, client: Any) -> None:
    folder = publish(house)
    for calls in range(5):
        dying = Dying(server.url)
        dying.calls_left = calls
        with pytest.raises(UnavailableError):
            house.projection(lambda dying=dying: dying).send_news()
        assert folder.tracking().status == "pending"
    assert house.projection(lambda: ExperimentTracker(server.url)).send_news() is False
    (run,) = runs_of(client, folder)
    assert len(run.inputs.dataset_inputs) == 4
    (output,) = run.outputs.model_outputs
    (logged,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert logged.model_id == output.model_id
    assert len({each.key for each in logged.metrics}) == len(logged.metrics)
    assert len(client.get_metric_history(run.info.run_id, "sharpe")) == 1
    assert len(client.search_model_versions(f"name = '{house.model_id}'")) == 1


def test_a_feature_set_says_why_there_is_no_network(house: House, server: MlflowServer, client: Any) -> None:
    folder = publish(house, write=write_recipe)
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    (run,) = runs_of(client, folder)
    (version,) = client.search_model_versions(f"name = '{house.model_id}'")
    for tags in (run.data.tags, version.tags):
        assert tags["network"].startswith("none: its family makes no network")
    assert version.source.endswith("/bundle")
    assert client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'") == []
    assert run.data.metrics["sharpe"] == 0.8


def test_a_graph_that_cannot_be_read_costs_the_model_and_nothing_else(
    house: House, server: MlflowServer, client: Any
) -> None:
    def write(draft: Path) -> None:
        write_recipe(draft)
        (draft / "model.onnx").write_bytes(b"\x08\x01" * 50)

    folder = publish(house, write=write)
    house.projection(lambda: ExperimentTracker(server.url)).send_news()
    (run,) = runs_of(client, folder)
    assert run.data.tags["network"].startswith("none: model.onnx is no graph")
    assert (run.info.status, run.data.metrics["sharpe"]) == ("FINISHED", 0.8)
