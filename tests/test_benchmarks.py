"""The queue's benchmarks run: in small, so that what they compare and count is checked, whatever the figures are."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import lists, publishing, queue_latency, serving, training_speed
from tools import interleaved_rounds as rounds

pytestmark = pytest.mark.more


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results and contestants' logs go here instead of over the last real run's."""
    for module in (rounds, serving, training_speed):
        monkeypatch.setattr(module, "WORKPLACE", tmp_path)
    return tmp_path / "results"


def figures(results: Path, name: str) -> dict[str, Any]:
    """What the benchmark kept."""
    kept: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["figures"]
    return kept


def test_publishing_keeps_the_same_records_whoever_publishes_them(results: Path) -> None:
    publishing.main(num=300, num_rounds=1)
    by_clock = figures(results, "publishing")["per_second"]
    assert set(by_clock) == set(publishing.CONTESTANTS)
    assert all(each > 0 for rates in by_clock.values() for each in rates)


def test_each_record_published_at_a_rate_is_applied_or_counted(results: Path) -> None:
    queue_latency.main(rate_per_s=200.0, duration_s=2.0, num_rounds=1)
    found = figures(results, "queue_latency")
    assert 0 < found["p50_ms"][0] <= found["p99_ms"][0]


@pytest.mark.timeout(600)
def test_lists_of_copied_models_and_jobs_are_answered(results: Path) -> None:
    sizes = {lists.SMALL: (2, 10), lists.LARGE: (6, 30)}
    lists.main(num_rounds=1, per_turn=1, num_browser_rounds=0, sizes=sizes)
    found = figures(results, "lists")
    assert set(found) == {*lists.WHOLE, *lists.EQUAL}
    assert all(len(each[name]) == 1 for each in found.values() for name in sizes)


def given_to_controls(folder: Path) -> Path:
    """A graph that averages its rows, and a scaler that changes nothing but levels."""
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", "T", 2])
    outputs = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["N", 1])
    nodes = [
        helper.make_node("ReduceMean", ["rows"], ["mean_N1"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["mean_N1", "axis"], ["outputs"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "mean", [rows], [outputs], [axis])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    scaler = {"features": ["a", "b"], "is_level": [False, True], "center": [0, 0], "scale": [1, 1], "label_scale": 2.0}
    (folder / "scaler.json").write_text(json.dumps(scaler), encoding="utf-8")
    return folder


def test_the_servings_controls_say_the_same_and_their_answers_are_counted(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "OURS", serving.FASTAPI)
    monkeypatch.setattr(serving, "OFF", serving.FASTAPI)
    given = given_to_controls(tmp_path)
    body = json.dumps({"symbol": "EUR/USD", "timeframe": "1h", "features": {"b": [1.0, 1.0], "a": [0.5, 1.5]}})
    with ExitStack() as stack:
        served = {
            name: stack.enter_context(
                serving.control(script, given, body, python=Path(sys.executable), path="/predict")
            )
            for name, script in ((serving.BARE, "bare_serving"), (serving.FASTAPI, "fastapi_serving"))
        }
        assert [each.ask() for each in served.values()] == [{"prediction": 1.0}] * 2
        serving.compare(served)
        serving.report(serving.measure(served, num_rounds=1, seconds=0.3), ())
    found = figures(results, "serving")
    assert all(rate > 0 for rates in found["per_s"].values() for each in rates.values() for rate in each)
