"""One trace from a caller's request through stages, queue and agent, and through a job to its worker's stages."""

import pytest

from tests.conftest import SMALL_TRAIN
from tests.traces.collector import Seen
from tests.traces.conftest import PARENT, Traced, caller, deploy, predict

pytestmark = pytest.mark.more  # real services

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
STAGES = ("read request", "choose version", "features", "wait in line", "scale windows", "run network",
          "decode and record", "publish predictions")  # fmt: skip
PREDICT = "POST /api/v1/models/{model_id}/predict"
PREDICTIONS = "ml_workbench:predictions"


@pytest.fixture(scope="module")
def live(traced: Traced) -> Traced:
    """With `small` deployed, which the strategy engine is told."""
    trace, headers = caller(1)
    deploy(traced.service, target="strategy_engine", **headers)
    (told, _), *_ = traced.engine.received
    engine_call = traced.collector.named("POST", trace)
    assert engine_call.kind == CLIENT
    assert told["traceparent"] == f"00-{trace}-{engine_call.id}-01"
    return traced


def test_a_prediction_is_one_trace_from_the_caller_to_the_agents_step(live: Traced) -> None:
    trace, headers = caller(2)
    identifier = predict(live.service, **headers).headers["x-correlation-id"]
    request = live.collector.named(PREDICT, trace)
    assert (request.kind, request.parent, request.service, request.process) == (SERVER, PARENT, "bench", "service")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/api/v1/models/{model_id}/predict"
    assert request.attributes["ml_workbench.correlation_id"] == identifier
    stages = [live.collector.named(name, trace) for name in STAGES]
    assert {each.parent for each in stages} == {request.id}
    assert [each.begun_ns for each in stages] == sorted(each.begun_ns for each in stages)
    assert all(request.begun_ns <= each.begun_ns <= each.ended_ns for each in stages)
    step = live.collector.named("agent step", trace)
    assert (step.kind, step.parent, step.process) == (CONSUMER, stages[-1].id, "agent")
    client = live.redis.client()
    _, fields = client.xrevrange(PREDICTIONS, count=1)[0] if client.xlen(PREDICTIONS) else (b"", {})
    client.close()
    assert fields.get(b"traceparent", f"00-{trace}-{stages[-1].id}-01".encode()).startswith(f"00-{trace}".encode())


def test_a_batch_is_one_run_and_one_publication(live: Traced) -> None:
    trace, headers = caller(3)
    item = {"symbol": "EUR/USD", "timeframe": "1h", "features": live_features()}
    body = {"items": [{**item, "price": 1.1 + number / 1000} for number in range(5)]}
    answer = live.service.client.post("/api/v1/models/small/predict/batch", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert live.collector.named("answer batch", trace).attributes["ml_workbench.rows"] == 5
    published = live.collector.named("publish predictions", trace)
    assert published.attributes["messaging.batch.message_count"] == 5
    live.collector.awaited(lambda: _steps(live, trace, 5), "five steps")
    assert {each.parent for each in live.collector.of(trace) if each.name == "agent step"} == {published.id}


def _steps(live: Traced, trace: str, num: int) -> list[Seen]:
    found = [each for each in live.collector.of(trace) if each.name == "agent step"]
    return found if len(found) >= num else []


def live_features() -> dict[str, list[float]]:
    """Of a window."""
    return {
        "sma_20": [1.1012, 1.1015, 1.1020], "rsi_14": [45.2, 46.8, 48.3], "macd": [0.0012, 0.0015, 0.0018],
        "bb_width": [0.0025, 0.0024, 0.0028],
    }  # fmt: skip


def test_a_training_hangs_below_the_request_that_asked_for_it(live: Traced) -> None:
    trace, headers = caller(4)
    live.service.client.headers.update(headers)
    try:
        job = live.service.train({**SMALL_TRAIN, "model_id": "traced"})
    finally:
        del live.service.client.headers["traceparent"]
    work = live.collector.named("job train", trace)
    asked = next(each for each in live.collector.of(trace) if each.name == "POST /api/v1/models/train")
    assert (asked.parent, work.parent, work.process) == (PARENT, asked.id, "job worker")
    assert work.attributes["ml_workbench.job_id"] == job["id"]
    stages = {each.name: each for each in live.collector.of(trace) if each.parent == work.id}
    assert {
        "wait for a worker", "fetching features", "cutting windows", "looking for leaks", "training", "publishing",
    } <= stages.keys()  # fmt: skip
    assert stages["fetching features"].ended_ns <= stages["cutting windows"].begun_ns
    assert not work.failed


def test_an_error_is_told_by_its_class_and_nothing_that_was_sent(live: Traced) -> None:
    trace, headers = caller(5)
    answer = live.service.client.post(
        "/api/v1/models/small/predict?enqueue=best_effort", json={"symbol": "SECRET/SECRET"}, headers=headers
    )
    assert answer.status_code == 422
    request = live.collector.named(PREDICT, trace)
    assert request.attributes["http.response.status_code"] == 422
    assert not request.failed, "what a caller did wrong is no fault of the service"
    assert "SECRET" not in repr(live.collector.of(trace))


@pytest.mark.parametrize(
    "said",
    [
        "nonsense", "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "ff-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-XYZ7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
    ],
)  # fmt: skip
def test_a_traceparent_that_is_none_is_ignored(live: Traced, said: str) -> None:
    identifier = predict(live.service, traceparent=said).headers["x-correlation-id"]
    found = live.collector.awaited(
        lambda: [
            each for each in live.collector.spans if each.attributes.get("ml_workbench.correlation_id") == identifier
        ],
        "request",
    )
    assert found[0].parent == ""
    assert found[0].trace not in said


def test_a_caller_who_does_not_sample_is_not_traced_and_probes_only_on_request(live: Traced) -> None:
    trace, headers = caller(6, sampled=False)
    predict(live.service, **headers)
    live.service.client.get("/health")
    wanted, asked = caller(7)
    live.service.client.get("/health", headers=asked)
    assert live.collector.named("GET /health", wanted).parent == PARENT
    assert live.collector.of(trace) == []
    assert [each.trace for each in live.collector.spans if each.name == "GET /health"] == [wanted]


def test_the_collectors_own_headers_are_sent_and_no_line_has_them(live: Traced) -> None:
    assert {each["authorization"] for each in live.collector.headers} == {"Bearer collectors-own"}
    assert "collectors-own" not in live.service.output.read_text(encoding="utf-8")
    assert "ml_workbench_spans_dropped_total 0.0" in live.service.client.get("/metrics").text
