"""Numbers and truth values of a query are written as JSON writes them; a 405 names every method of its path."""

from typing import Any

import httpx
import pytest

JOBS, MODELS = "/api/v1/jobs", "/api/v1/models"
LABELS = "/api/v1/labels/EURUSD?target=price_change_1h&start_date=2024-01-08T00:00:00Z&end_date=2024-01-09T00:00:00Z"


def refused(answer: httpx.Response, path: str) -> None:
    assert answer.status_code == 422, answer.text
    assert path in [each["path"] for each in answer.json()["details"]["errors"]]


@pytest.mark.parametrize(
    "text", ["5.0", " 5", "1_0", "+5", "05", "true", "NaN", "Infinity", "5e0", "\u0665", "", "9" * 400]
)
def test_a_whole_number_in_a_query_is_written_in_digits(api: httpx.Client, text: str) -> None:
    refused(api.get(JOBS, params={"limit": text}), "query.limit")


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "1_0", " 1.5", "1.", ".5", "true", "5e-324", "1e-310", "1e999", "0x1"]
)
def test_a_number_in_a_query_is_written_as_json_writes_it(api: httpx.Client, text: str) -> None:
    refused(api.get(f"{LABELS}&k={text.replace(' ', '%20')}"), "query.k")


@pytest.mark.parametrize("text", ["1", "yes", "on", "True", "t", ""])
def test_a_truth_value_in_a_query_is_true_or_false(api: httpx.Client, text: str) -> None:
    refused(api.delete(f"{MODELS}/small/versions/9.9.9", params={"purge": text}), "query.purge")


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        (JOBS, {"limit": "5.0"}, "no_number"),
        (JOBS, {"limti": "5"}, "extra"),
        (JOBS, {"limit": "0"}, "greater_than_equal"),
        (JOBS, {"limit": "201"}, "less_than_equal"),
        (JOBS, {"status": "asleep"}, "enum"),
        (f"{LABELS}&k=1.", {}, "no_number"),
        (f"{LABELS}&k=1e-310", {}, "too_small"),
        (f"{MODELS}/small/versions/9.9.9", {"purge": "yes"}, "no_truth_value"),
    ],
)
def test_each_mistake_of_a_query_has_its_code(api: httpx.Client, path: str, params: dict[str, str], code: str) -> None:
    method = "DELETE" if "purge" in params else "GET"
    answer = api.request(method, path, params=params or None)
    assert answer.status_code == 422, answer.text
    assert [each["code"] for each in answer.json()["details"]["errors"]] == [code]


def test_what_is_written_as_json_writes_it_is_read(api: httpx.Client) -> None:
    assert len(api.get(JOBS, params={"limit": "1"}).json()["jobs"]) == 1
    for k in ("1.5", "2", "1e0"):
        answer = api.get(f"{LABELS}&k={k}".replace("price_change_1h", "triple_barrier_8h"))
        assert answer.status_code == 200 or "query.k" not in answer.text, answer.text
    answer = api.delete(f"{MODELS}/small/versions/9.9.9", params={"purge": "false"})
    assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("event", ["\u00b2", "9" * 400, "x", "-1", "1.5"])
def test_a_last_event_that_is_no_number_is_none(api: httpx.Client, event: str) -> None:
    job = api.get(JOBS, params={"limit": "1"}).json()["jobs"][0]["id"]
    headers: Any = {"Last-Event-ID": event.encode("latin-1")}
    with api.stream("GET", f"{JOBS}/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", f"{MODELS}/small", "DELETE, GET"), ("PUT", f"{MODELS}/train", "POST"),
        ("PUT", "/api/v1/agents", "GET, POST"), ("OPTIONS", f"{JOBS}/nobody", "DELETE, GET"), ("PUT", "/health", "GET"),
    ],
)  # fmt: skip
def test_a_405_names_every_method_of_its_path(api: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = api.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
