"""Planning: what cannot be trained is refused before it starts, and what is too large says what would fit."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError, InsufficientMemoryError, UpstreamError, VersionExistsError
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.resources import Addresses, Workbench, open_workbench
from ml_workbench_service.settings import EMBEDDED, Settings
from ml_workbench_service.workflows.plan_training import TrainingPlan, plan_training, slug
from tests.service_process import SEED_TRAIN
from tests.workflows.conftest import OpenBench

GB = 16.0
A_CLASS: dict[str, Any] = {"model_type": "classification", "target": "direction_1h", "hyperparameters": {}}
A_POLICY: dict[str, Any] = {"model_type": "reinforcement_learning", "target": None, "hyperparameters": {}}
ALL_COSTS = {"spread_pips": 1, "commission_bp": 0.5, "slippage_bp": 0.1, "swap_long_pips": 1, "swap_short_pips": 1}
TEN_AVERAGES = [f"sma_{number}" for number in range(2, 12)]


@pytest.fixture
def bench(open_bench: OpenBench) -> Workbench:
    """With versions 1.0.0 and 1.2.0 of `small`."""
    return open_bench("1.0.0", "1.2.0")


def plan(bench: Workbench, *unfinished: JobSpec, limit_gb: float = GB, **changes: Any) -> TrainingPlan:
    """The seed's request, planned; keyword arguments replace keys."""
    request = TrainRequest.model_validate({**SEED_TRAIN, **changes})
    return plan_training(request, bench, unfinished=unfinished, max_memory_gb=limit_gb)


def under_way(version: str, model_id: str = "small", kind: JobKind = JobKind.TRAIN) -> JobSpec:
    """A job that has not ended."""
    return JobSpec(
        id="job",
        kind=kind,
        request={},
        plan={"model_id": model_id, "version": version},
        created_at=utc_now(),
        correlation_id="",
    )


def test_the_seeds_request_makes_a_plan(bench: Workbench) -> None:
    found = plan(bench)
    assert (found.model_id, found.version) == ("lstm_price_predictor", "1.0.0")
    assert found.estimate.num_windows == pytest.approx(2 * 2.16 * 52.18 * 120, rel=0.02)
    assert found.estimate.duration_s > 10
    assert 0.5 < found.estimate.memory_gb < 2


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("LSTM Price Predictor", "lstm_price_predictor"),
        ("  EUR/USD -- v2!  ", "eur_usd_v2"),
        ("..", None),
        ("価格", None),
        ("x" * 100, "x" * 64),
        ("_a_", "a"),
    ],
)
def test_a_name_makes_an_id(name: str, model_id: str | None) -> None:
    if model_id is None:
        with pytest.raises(DataValidationError, match="send a `model_id`"):
            slug(name)
        return
    assert slug(name) == model_id


@given(name=st.text(max_size=80))
def test_an_id_made_of_any_name_is_a_valid_one(name: str) -> None:
    try:
        found = slug(name)
    except DataValidationError:
        return
    request = {**SEED_TRAIN, "model_id": found}
    assert TrainRequest.model_validate(request).model_id == found


def test_versions_that_are_published_or_being_trained_are_taken(bench: Workbench) -> None:
    assert plan(bench, model_id="small").version == "1.3.0"
    assert plan(bench, under_way("1.3.0"), under_way("1.4.0"), model_id="small").version == "1.5.0"
    assert plan(bench, under_way("7.0.0", "other"), model_id="small").version == "1.3.0"
    assert plan(bench, under_way("7.0.0", kind=JobKind.REPLAY), model_id="small").version == "1.3.0"
    for version in ("1.0.0", "1.2.0", "1.3.0"):
        with pytest.raises(VersionExistsError, match="leave `version` out"):
            plan(bench, under_way("1.3.0"), model_id="small", version=version)
    assert plan(bench, model_id="small", version="0.9.0").version == "0.9.0"


@pytest.mark.parametrize(
    ("changes", "path", "hint"),
    [
        ({"features": ["sma_20", "rsi14"]}, "body.features.1", "rsi_14"),
        ({"symbols": ["XXX/YYY"]}, "body.costs", "send all five"),
        ({"target": "price_change_1h", "timeframe": "4h"}, "body.target", "leave `timeframe` out"),
        ({"target": None}, "body.target", "time_series needs a target"),
        ({"target": ["price_change_1h", "volatility_5d"]}, "body.target", "train a model for each"),
        ({"quantiles": [0.1, 0.9]}, "body.quantiles", "add it"),
        ({"family": "gur"}, "body.family", "did you mean gru"),
        ({"hyperparameters": {"dropuot": 0.1}}, "body.hyperparameters.dropuot", "did you mean dropout"),
        ({"costs": {"spread_pips": -1}}, "body.costs.spread_pips", "from 0 to"),
        ({"costs": {"swap_long_pips": 1e300}}, "body.costs.swap_long_pips", "correct it"),
        ({"target": "price_change_1d", "start_date": "2025-01-20T00:00:00Z"}, "body.start_date", "a longer range"),
        ({"target": "price_change_9999d"}, "body.start_date", "at most 0 windows"),
        (
            {"target": "price_change_61h"},
            "body.target",
            "at most 60 bars ahead, or as far on daily bars: price_change_3d",
        ),
        (
            {"start_date": "2098-01-01T00:00:00Z", "end_date": "2099-01-01T00:00:00Z"},
            "body.start_date",
            "start in the past",
        ),
        (
            {**A_CLASS, "model_id": "small"},
            "body.model_id",
            "small is a model of type time_series; send another `model_id`",
        ),
        ({**A_POLICY, "features": TEN_AVERAGES}, "body.hyperparameters.bins", "send bins: 3"),
        ({"model_type": "anomaly_detection", "hyperparameters": {}}, "body.target", "leave `target` out"),
        ({**A_POLICY, "cv": {"scheme": "combinatorial_purged"}}, "body.cv.scheme", "send walk_forward"),
        ({**A_POLICY, "sample_weights": "uniqueness"}, "body.sample_weights", "leave it out"),
    ],
)
def test_a_refusal_names_the_place_and_what_to_send(
    bench: Workbench, changes: dict[str, Any], path: str, hint: str
) -> None:
    with pytest.raises(DataValidationError) as caught:
        plan(bench, **changes)
    [found] = caught.value.details["errors"]
    assert found["path"] == path
    assert hint in found["message"]


def test_a_policy_without_a_table_takes_any_number_of_features(bench: Workbench) -> None:
    found = plan(bench, **A_POLICY, family="dqn", features=TEN_AVERAGES)
    assert found.derivation.features == tuple(TEN_AVERAGES)


def test_costs_at_the_borders_can_be_planned_with(bench: Workbench) -> None:
    assert plan(bench, costs={"spread_pips": 0, "swap_short_pips": -2.5}).version == "1.0.0"


@settings(max_examples=60, deadline=None)
@given(
    lookback=st.sampled_from([24, 200, 1024]),
    units=st.sampled_from([8, 256, 2048]),
    batch_size=st.sampled_from([32, 65_536]),
    years=st.integers(1, 25),
    timeframe=st.sampled_from(["1h", "15m", "5m"]),
    limit_gb=st.floats(0.3, 8.0),
)
@pytest.mark.more
def test_the_change_that_a_507_proposes_fits(
    sample_bench: Workbench, lookback: int, units: int, batch_size: int, years: int, timeframe: str, limit_gb: float
) -> None:
    end = datetime(2025, 3, 1, tzinfo=UTC)
    body = {
        "target": "log_return_1",
        "timeframe": timeframe,
        "start_date": (end - timedelta(days=365 * years)).isoformat(),
        "end_date": end.isoformat(),
        "hyperparameters": {"lookback": lookback, "lstm_units": units, "batch_size": batch_size},
    }
    try:
        assert plan(sample_bench, limit_gb=limit_gb, **body).estimate.memory_gb <= limit_gb
        return
    except InsufficientMemoryError as error:
        details = error.details
        assert details["estimate"]["memory_gb"] > limit_gb == details["limit_gb"]
    change = details["change"]
    if change is None:
        assert limit_gb < 0.75  # a worker's libraries alone need more
        return
    hyperparameters = {**body["hyperparameters"], **change.get("hyperparameters", {})}  # type: ignore[dict-item]
    fitting = {**body, **change, "hyperparameters": hyperparameters}
    assert plan(sample_bench, limit_gb=limit_gb, **fitting).estimate.memory_gb <= limit_gb


@pytest.fixture(scope="module")
def sample_bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A workbench without a model."""
    addresses = Addresses(EMBEDDED, "disabled", False, None, False)
    return open_workbench(Settings(MODEL_REGISTRY_PATH=tmp_path_factory.mktemp("registry")), addresses)


def test_the_cheapest_change_comes_first(sample_bench: Workbench) -> None:
    with pytest.raises(InsufficientMemoryError) as caught:
        plan(sample_bench, limit_gb=1.5, hyperparameters={"lookback": 1024, "lstm_units": 512, "batch_size": 32})
    assert caught.value.details["change"] == {"hyperparameters": {"lstm_units": 256}}
    assert "lstm_units: 256" in caught.value.message
    with pytest.raises(InsufficientMemoryError) as caught:
        plan(sample_bench, limit_gb=2.0, hyperparameters={"lookback": 24, "lstm_units": 64, "batch_size": 65_536})
    assert list(caught.value.details["change"]["hyperparameters"]) == ["batch_size"]


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"symbols": ["EUR/USD", "USD/VND"], "costs": ALL_COSTS}, "body.symbols", r"no USD/VND; .* EUR, .* USD"),
        ({"start_date": "1980-01-01T00:00:00Z", "end_date": "1985-01-01T00:00:00Z"}, "body.start_date", "bars from"),
    ],
)
def test_what_the_store_cannot_serve_is_refused_with_what_there_is(
    bench: Workbench, changes: dict[str, Any], path: str, said: str
) -> None:
    with pytest.raises(DataValidationError, match=said) as caught:
        plan(bench, **changes)
    assert caught.value.details["errors"][0]["path"] == path


class Unreachable:
    """A feature store whose server is away."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def fetch(self, *_: object, **__: object) -> list[FeatureTable]:
        raise UpstreamError("the Feature Store cannot be reached")


def test_a_server_that_is_away_is_the_jobs_to_meet(bench: Workbench) -> None:
    assert plan(replace(bench, feature_store=Unreachable(bench.feature_store))).version == "1.0.0"


def trained(bench: Workbench, version: str) -> TrainRequest:
    """The request of a published version, under its id."""
    recipe = json.loads((bench.registry.folder("small", version) / "recipe.json").read_text(encoding="utf-8"))
    return TrainRequest.model_validate({**recipe["request"], "model_id": "small", "version": None})


def planned(bench: Workbench, request: TrainRequest, **changes: Any) -> TrainingPlan:
    asked = TrainRequest.model_validate(request.model_dump(mode="json") | changes)
    return plan_training(asked, bench, unfinished=(), max_memory_gb=GB)


def test_a_training_that_adds_no_bar_is_refused_unless_forced(bench: Workbench) -> None:
    request = trained(bench, "1.2.0")
    with pytest.raises(DataValidationError, match=r"version 1\.2\.0 was trained on this request") as caught:
        planned(bench, request, name="another name", notes="and notes")
    assert caught.value.details["errors"][0]["code"] == "nothing_new"
    assert planned(bench, request, force=True).version == "1.3.0"


def test_whatever_is_another_training_is_no_repetition(bench: Workbench) -> None:
    request = trained(bench, "1.2.0")
    later = request.end_date + timedelta(days=30)
    for changes in (
        {"end_date": later.isoformat()},
        {"start_date": (request.start_date - timedelta(days=30)).isoformat()},
        {"seeds": [7]},
        {"hyperparameters": {**request.hyperparameters, "epochs": 3}},
        {"features": request.features[:-1]},
        {"validation_split": 0.3},
    ):
        assert planned(bench, request, **changes).version == "1.3.0"


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"request": {}, "last_known_ms": 1}', None])
def test_a_version_whose_recipe_cannot_be_read_forbids_no_training(bench: Workbench, damage: bytes | None) -> None:
    request, file = trained(bench, "1.2.0"), bench.registry.folder("small", "1.2.0") / "recipe.json"
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    assert planned(bench, request).version == "1.3.0"
