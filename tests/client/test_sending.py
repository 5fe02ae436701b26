"""What is repeated and what is not, step by step: plans are driven by hand, so that nothing waits for a clock."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import httpx
import pytest

from common_lib.exceptions import (
    DataValidationError,
    GateFailedError,
    InsufficientMemoryError,
    ModelNotFoundError,
    PlatformError,
    RateLimitError,
    RouteNotFoundError,
    UnavailableError,
    UpstreamError,
    UpstreamTimeoutError,
)
from ml_workbench_client import AsyncWorkbench, Patience, Workbench, routes
from ml_workbench_client.errors import class_of, error_of
from ml_workbench_client.model import is_body
from ml_workbench_client.plans import Conversation
from ml_workbench_client.routes import Repeat, Route
from ml_workbench_client.sending import answered, read, written
from ml_workbench_client.wire import Answer, Pause, Request, Send
from ml_workbench_service.contracts.models import ModelList

PATIENCE = Patience(num_retries=3, first_s=1.0, longest_s=3.0, longest_retry_after_s=60.0)
BODY = {
    "error_type": "UnavailableError",
    "error_code": "UNAVAILABLE",
    "message": "not now; try again",
    "details": {"a": 1},
    "correlation_id": "abc",
}
GET = routes.LIST_MODELS
KEYED = routes.TRAIN
ONCE = routes.PREDICT


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    return Answer(
        status,
        httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()}),
        json.dumps(body or {}).encode(),
    )


def asked(route: Route, *outcomes: Answer | httpx.TransportError) -> tuple[list[float], Answer | PlatformError]:
    """Drives the plan with these outcomes, one a try; the pauses between, and how it ended."""
    request = Request(route, route.path, content=b"{}")
    talk = Conversation(answered(request, PATIENCE, "http://there"))
    pauses: list[float] = []
    waiting = list(outcomes)
    try:
        while not talk.is_over:
            if isinstance(talk.effect, Pause):
                pauses.append(talk.effect.seconds)
                talk.answer(None)
                continue
            assert talk.effect == Send(request), "each try sends the very same request"
            outcome = waiting.pop(0)
            talk.fail(outcome) if isinstance(outcome, httpx.TransportError) else talk.answer(outcome)
    except PlatformError as error:
        assert waiting == []
        return pauses, error
    assert waiting == []
    return pauses, talk.result


def test_an_answer_is_an_answer() -> None:
    assert asked(GET, answer(200)) == ([], answer(200))


@pytest.mark.parametrize("route", [GET, KEYED, ONCE])
def test_what_never_left_is_sent_again_whatever_it_is(route: Route) -> None:
    pauses, end = asked(route, httpx.ConnectError("refused"), httpx.ConnectTimeout(""), answer(200))
    assert end == answer(200)
    assert 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0, "the waits double, half of each is chance"


def test_it_is_given_up_after_the_retries_and_says_what_to_do() -> None:
    pauses, end = asked(GET, *[httpx.ConnectError("refused")] * 4)
    assert isinstance(end, UnavailableError)
    assert "http://there" in end.message
    assert "WORKBENCH_URL" in end.message
    assert len(pauses) == 3
    assert pauses[2] <= 3.0


@pytest.mark.parametrize("route", [GET, KEYED])
def test_a_connection_that_breaks_is_taken_up_again_where_nothing_happens_twice(route: Route) -> None:
    assert asked(route, httpx.ReadError("reset"), answer(200))[1] == answer(200)


def test_a_prediction_that_may_have_happened_is_never_repeated() -> None:
    pauses, end = asked(ONCE, httpx.ReadError("reset"))
    assert isinstance(end, UnavailableError)
    assert "look before asking again" in end.message
    assert pauses == []
    assert isinstance(asked(ONCE, httpx.ReadTimeout("slow"))[1], UpstreamTimeoutError)
    assert isinstance(asked(ONCE, answer(503, BODY, Retry_After="1"))[1], UnavailableError)


def test_slowness_is_asked_again_only_with_a_key() -> None:
    assert isinstance(asked(GET, httpx.ReadTimeout("slow"))[1], UpstreamTimeoutError)
    assert asked(KEYED, httpx.ReadTimeout("slow"), answer(202))[1] == answer(202)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for_to_the_second(status: int) -> None:
    assert asked(GET, answer(status, BODY, Retry_After="7"), answer(200)) == ([7.0], answer(200))


def test_a_long_retry_after_is_the_callers_to_decide() -> None:
    pauses, end = asked(GET, answer(503, BODY, Retry_After="3600"))
    assert pauses == []
    assert isinstance(end, UnavailableError)
    assert end.retry_after_s == 3600


def test_a_date_in_retry_after_is_read() -> None:
    pauses, _ = asked(GET, answer(503, BODY, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), answer(200))
    assert pauses == [0.0]


def test_a_proxys_502_is_tried_again_and_the_services_own_is_not() -> None:
    assert asked(GET, answer(502), answer(200))[1] == answer(200)
    own = {**BODY, "error_code": "UPSTREAM_ERROR"}
    assert isinstance(asked(GET, answer(502, own))[1], UpstreamError)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("MODEL_NOT_FOUND", 404, ModelNotFoundError),
        ("GATE_FAILED", 409, GateFailedError),
        ("RATE_LIMIT", 429, RateLimitError),
        ("INSUFFICIENT_MEMORY", 507, InsufficientMemoryError),
        ("A_CODE_OF_TOMORROW", 422, DataValidationError),
        ("INTERNAL_ERROR", 418, PlatformError),
    ],
)
def test_error_codes_are_classes(code: str, status: int, kind: type[PlatformError]) -> None:
    assert class_of(code, status) is kind


def test_an_error_has_what_the_body_had() -> None:
    error = error_of(answer(404, {**BODY, "error_code": "ROUTE_NOT_FOUND"}, Retry_After="3"))
    assert isinstance(error, RouteNotFoundError)
    assert (error.message, error.details, error.correlation_id, error.retry_after_s) == (
        BODY["message"], {"a": 1}, "abc", 3,
    )  # fmt: skip


def test_an_answer_of_something_else_is_told_apart() -> None:
    assert "no answer of the ML Workbench service" in error_of(answer(404, "nginx")).message
    assert isinstance(error_of(answer(500, "oops")), UpstreamError)


def test_keys_of_a_newer_service_are_left_out_and_nonsense_is_refused() -> None:
    assert read(ModelList, {"models": [], "next_cursor": None, "later": {"x": 1}}) == ModelList(models=())
    assert read(ModelList, b'{"models": [], "later": 1}') == ModelList(models=())
    with pytest.raises(UpstreamError, match="models"):
        read(ModelList, {"models": 3, "later": 1})


def flaky(
    *statuses: int | type[httpx.TransportError],
) -> tuple[Callable[[httpx.Request], httpx.Response], list[httpx.Request]]:
    """A transport's handler that answers so one after the other, and what it was sent."""
    seen: list[httpx.Request] = []
    waiting = list(statuses)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        status = waiting.pop(0)
        if not isinstance(status, int):
            raise status("broken", request=request)
        return httpx.Response(status, json={"job_id": "j1", "model_id": "m", "version": "1.0.0", "status": "queued"})

    return handle, seen


def test_the_retries_of_one_call_carry_one_key_and_the_next_call_another() -> None:
    handle, seen = flaky(httpx.ReadError, httpx.ConnectError, 202, 202)
    wb = Workbench(api_key="geheim", patience=Patience(first_s=0.0), transport=httpx.MockTransport(handle))
    assert wb.train(name="x").id == "j1"
    assert wb.train(name="x").id == "j1"
    keys = [each.headers["Idempotency-Key"] for each in seen]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert len({each.content for each in seen}) == 1
    assert {each.headers["X-API-Key"] for each in seen} == {"geheim"}


async def test_the_async_client_keeps_the_same_rules() -> None:
    handle, seen = flaky(httpx.ReadError, httpx.ConnectError, 202, httpx.ReadError)
    async with AsyncWorkbench(patience=Patience(first_s=0.0), transport=httpx.MockTransport(handle)) as awb:
        assert (await awb.train(name="x")).id == "j1"
        with pytest.raises(UnavailableError, match="look before"):
            await awb.model("m").predict({"a": [1.0]})
    assert len({each.headers.get("Idempotency-Key") for each in seen[:3]}) == 1
    assert "Idempotency-Key" not in seen[3].headers


def test_the_key_is_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", "geheim")
    monkeypatch.setenv("WORKBENCH_URL", "http://bench.example:1234/")
    handle, seen = flaky(404)
    with caplog.at_level("DEBUG"):
        wb = Workbench(patience=Patience(first_s=0.0), transport=httpx.MockTransport(handle))
        with pytest.raises(PlatformError) as failed:
            wb.train(name="x")
    assert seen[0].headers["X-API-Key"] == "geheim"
    assert str(seen[0].url) == "http://bench.example:1234/api/v1/models/train"
    shown = [repr(wb), repr(wb._link), repr(wb.model("x")), str(failed.value), caplog.text, repr(vars(wb))]
    assert not any("geheim" in text for text in shown)
    for address in ("http://user:geheim@host", "ftp://host", "host:80"):
        with pytest.raises(DataValidationError) as refused:
            Workbench(address)
        assert "geheim" not in str(refused.value)


def test_a_key_of_any_letters_is_sent_as_the_service_compares_it() -> None:
    handle, seen = flaky(202)
    Workbench(api_key="s3cret-ßchlüssel", transport=httpx.MockTransport(handle)).train(name="x")
    assert dict(seen[0].headers.raw)[b"X-API-Key"] == "s3cret-ßchlüssel".encode()


def test_what_a_body_holds_is_written_as_json() -> None:
    import numpy as np
    import polars as pl

    body = {"a": np.array([1.5, 2.0]), "b": pl.Series([1, 2]), "c": (np.float64(0.5), None, "x")}
    assert json.loads(written(body)) == {"a": [1.5, 2.0], "b": [1, 2], "c": [0.5, None, "x"]}
    assert json.loads(written({"at": datetime(2025, 3, 1, 1, tzinfo=timezone(timedelta(hours=1)))})) == {
        "at": "2025-03-01T00:00:00Z"
    }
    for unsendable in ({"a": float("inf")}, {"a": object()}):
        with pytest.raises(DataValidationError, match="finite"):
            written(unsendable)


def test_columns_and_whole_bodies_are_told_apart() -> None:
    assert not is_body({"price": [1.0], "position": (1.0, 2.0)})
    assert is_body({"symbol": "EUR/USD", "timeframe": "1h"})
    assert is_body({"inputs": {"a": [1.0]}})
    assert is_body({"symbol": "EUR/USD", "features": {"a": [1.0]}, "price": 1.1})


def test_paths_and_queries_are_written_as_the_service_reads_them() -> None:
    assert routes.READ_FEATURES.at(symbol="EUR/USD") == "/api/v1/features/EUR%2FUSD"
    assert routes.query(a=None, b=True, c=["x", "y"], d=1.5) == {"b": "true", "c": "x,y", "d": "1.5"}
    assert {route.repeat for route in routes.ROUTES.values()} == set(Repeat)


def test_a_decimal_goes_out_as_the_number_that_it_is() -> None:
    assert written({"price": Decimal("1.0850"), "rows": [Decimal("2")]}) == b'{"price": 1.085, "rows": [2.0]}'
