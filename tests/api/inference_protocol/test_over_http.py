"""`/v2` over HTTP: the answers of `/predict` to the bit, in JSON and as bytes, and the protocol's own errors."""

import time
from datetime import timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from ml_workbench_service.contracts.contract import iso
from tests.api.conftest import Clone, Guarded
from tests.api.deploying import deployed
from tests.api.inference_protocol.asking import (
    FEATURES,
    asked,
    body,
    json_tensor,
    outputs_of,
    parameters_of,
    plain_records,
    records_of,
    window_of,
    with_binary,
)
from tests.api.predicting.test_predictions import NOON
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import ServiceProcess

SAME = {"X-Correlation-ID": "the-same"}


@pytest.fixture(scope="module")
def model(service: ServiceProcess) -> str:
    """In float32, where windows may share a run."""
    root = registry_of(service)
    for version in ("1.0.0", "1.1.0"):
        copy_version(root / "small" / version, root, "protocol", version, precision="fp32")
    return "protocol"


def infer(api: httpx.Client, model: str, request: dict[str, Any], **headers: str) -> httpx.Response:
    return api.post(f"/v2/models/{model}/infer", json=request, headers={**SAME, **headers})


@pytest.mark.parametrize("version", [None, "1.0.0"])
def test_a_window_is_answered_as_by_predict_to_the_bit(api: httpx.Client, model: str, version: str | None) -> None:
    request = body(price=1.1, position=0.5) | ({} if version is None else {"version": version})
    (plain,) = plain_records(api, model, request, **SAME)
    window, about = json_tensor("window", window_of(request)[None]), parameters_of(request)
    place = model if version is None else f"{model}/versions/{version}"
    answer = api.post(f"/v2/models/{place}/infer", json=asked(window, parameters=about, id="7"), headers=SAME)
    assert (answer.json()["model_name"], answer.json()["id"]) == (model, "7")
    assert answer.json()["model_version"] == (version or "1.1.0") == plain["version"]
    assert records_of(outputs_of(answer)) == [plain]


def test_columns_and_windows_and_bytes_and_json_say_the_same(api: httpx.Client, model: str) -> None:
    request = body()
    about, rows = parameters_of(request), window_of(request)
    columns = [json_tensor(name, rows[:, place]) for place, name in enumerate(FEATURES)]
    shuffled = [json_tensor(name, rows[None, :, place]) for place, name in reversed([*enumerate(FEATURES)])]
    texts = [json_tensor(name, [about[name]], "BYTES") for name in ("symbol", "timeframe")]
    moment = json_tensor("timestamp", [[about["as_of"]]], "BYTES")
    expected = plain_records(api, model, request, **SAME)
    for sent in (
        asked(json_tensor("window", rows), parameters=about),
        asked(*columns, parameters=about),
        asked(*shuffled, *texts, moment),
        asked({**json_tensor("window", []), "shape": [1, *rows.shape], "data": [rows.tolist()]}, parameters=about),
    ):
        assert records_of(outputs_of(infer(api, model, sent))) == expected
    described = {"name": "window", "datatype": "FP64", "shape": [1, *rows.shape]}
    content, headers = with_binary(asked(described, parameters={**about, "binary_data_output": True}), rows.tobytes())
    answer = api.post(f"/v2/models/{model}/infer", content=content, headers={**SAME, **headers})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert records_of(outputs_of(answer)) == expected
    del headers["Content-Type"]  # as some clients leave it out
    assert records_of(outputs_of(api.post(f"/v2/models/{model}/infer", content=content, headers=headers | SAME))) == (
        expected
    )


def test_single_precision_means_the_numbers_that_it_holds(api: httpx.Client, model: str) -> None:
    request = body()
    rows = window_of(request).astype("<f4")
    rounded = {name: rows[:, place].astype(float).tolist() for place, name in enumerate(FEATURES)}
    expected = plain_records(api, model, {**request, "features": rounded}, **SAME)
    assert expected != plain_records(api, model, request, **SAME)
    about = parameters_of(request)
    in_json = infer(api, model, asked(json_tensor("window", window_of(request)[None], "FP32"), parameters=about))
    described = {"name": "window", "datatype": "FP32", "shape": [1, *rows.shape]}
    content, headers = with_binary(asked(described, parameters=about), rows.tobytes())
    as_bytes = api.post(f"/v2/models/{model}/infer", content=content, headers={**SAME, **headers})
    assert records_of(outputs_of(in_json)) == records_of(outputs_of(as_bytes)) == expected


def test_many_windows_are_answered_as_by_a_batch(api: httpx.Client, model: str) -> None:
    requests = [
        body("GBP/USD" if hour % 3 else "EUR/USD", as_of=NOON - timedelta(hours=hour), price=1.2 + hour)
        for hour in range(7)
    ]
    expected = plain_records(api, model, *requests, **SAME)
    answer = infer(
        api, model,
        asked(
            json_tensor("window", np.stack([window_of(each) for each in requests])),
            json_tensor("symbol", [each["symbol"] for each in requests], "BYTES"),
            json_tensor("as_of", [each["as_of"] for each in requests], "BYTES"),
            json_tensor("price", [each["price"] for each in requests]),
            parameters={"timeframe": "H1"},
        ),
    )  # fmt: skip
    assert records_of(outputs_of(answer)) == expected


def test_every_field_of_the_record_is_a_tensor(api: httpx.Client, model: str) -> None:
    request = body()
    outputs = outputs_of(infer(api, model, asked(json_tensor("window", window_of(request)), parameters=parameters_of(
        request
    ))))  # fmt: skip
    (record,) = records_of(outputs)
    assert outputs["prediction"][0] == record["prediction"]
    assert outputs["outputs.price_change_1h"][0] == record["outputs"]["price_change_1h"]
    for end in ("level", "lower", "upper"):
        assert outputs[f"interval.{end}"][0] == record["interval"][end]
    assert outputs["novelty.score"][0] == record["novelty"]["score"]
    assert outputs["abstained"][0] == (record["status"] == "abstain")
    assert outputs["abstain_reasons"][0] == ",".join(record["abstain_reasons"])
    assert outputs["warnings"][0] == ",".join(record["warnings"])
    assert outputs["as_of"][0] == record["as_of"]
    assert outputs["metadata.precision"][0] == record["metadata"]["precision"]
    metadata = api.get(f"/v2/models/{model}").json()
    assert {each["name"]: len(each["shape"]) for each in metadata["outputs"]} == {
        name: values.ndim for name, values in outputs.items()
    }


def test_abstaining_is_an_answer(api: httpx.Client, model: str) -> None:
    sent = asked(json_tensor("window", window_of(body())), parameters={"symbol": "USD/JPY"})
    outputs = outputs_of(infer(api, model, sent | {"outputs": [{"name": "prediction"}, {"name": "abstained"}, {
        "name": "abstain_reasons", "parameters": {"binary_data": True}}]}))  # fmt: skip
    assert list(outputs) == ["prediction", "abstained", "abstain_reasons"]
    assert np.isnan(outputs["prediction"][0])
    assert outputs["abstained"][0]
    assert "unknown_symbol" in outputs["abstain_reasons"][0].split(",")


def test_without_features_the_service_fetches_them(api: httpx.Client, model: str) -> None:
    request = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(NOON)}
    expected = plain_records(api, model, request, **SAME)
    assert records_of(outputs_of(infer(api, model, asked(parameters=request)))) == expected


def test_a_live_answer_is_counted_kept_and_published_as_any_other(service: ServiceProcess, clone: Clone) -> None:
    name, api = clone("protocol_live"), service.client
    deployed(api, name, "1.1.0", monitoring_level="high")
    sent = asked(json_tensor("window", window_of(body())[None]), parameters={"symbol": "EUR/USD"})
    before = _published(api)
    for enqueue in ("best_effort", "guaranteed", "never"):
        outputs = outputs_of(infer(api, name, sent | {"parameters": {"symbol": "EUR/USD", "enqueue": enqueue}}))
        assert outputs["role"][0] == "champion"
    two = asked(json_tensor("window", np.stack([window_of(body())] * 2)), parameters={
        "symbol": "GBP/USD", "enqueue": "guaranteed"})  # fmt: skip
    outputs_of(infer(api, name, two))
    kept: list[Any] = []
    deadline = time.monotonic() + 60
    while (_published(api) - before, len(kept)) != (4, 4):
        assert time.monotonic() < deadline, (_published(api) - before, len(kept))
        time.sleep(0.05)
        kept = api.get("/api/v1/predictions", params={"model_id": name}).json()["predictions"]
    line = 'ml_workbench_http_requests_total{method="POST",route="/v2/models/{model_id}/infer",status="200"}'
    assert line in api.get("/metrics").text


def _published(api: httpx.Client) -> int:
    (group,) = (each for each in api.get("/api/v1/queue").json()["groups"] if each["group"] == "agent:default")
    return int(group["enqueued"])


WINDOW = json_tensor("window", np.ones((1, 24, 4)))
ABOUT = {"symbol": "EUR/USD"}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (asked(json_tensor("window", np.ones((1, 24, 3))), parameters=ABOUT), "[windows, rows, 4]"),
        (asked(json_tensor("window", np.ones(24)), parameters=ABOUT), "[windows, rows, 4]"),
        (asked({**WINDOW, "shape": [1, 24, 5]}, parameters=ABOUT), "120 values, not 96"),
        (asked({**WINDOW, "datatype": "INT32", "data": [1.5] * 96}, parameters=ABOUT), "window is INT32"),
        (asked({**WINDOW, "data": [None] * 96}, parameters=ABOUT), "send numbers"),
        (asked({**WINDOW, "data": ["1"] * 96}, parameters=ABOUT), "send numbers"),
        (asked({**WINDOW, "data": [1e16] * 96}, parameters=ABOUT), "beyond 1e+15"),
        (asked({**WINDOW, "datatype": "BYTES", "data": ["1"] * 96}, parameters=ABOUT), "takes numbers"),
        (asked({"name": "window", "datatype": "FP64", "shape": [1, 24, 4]}, parameters=ABOUT), "has no values"),
        (asked(WINDOW, WINDOW, parameters=ABOUT), "sent twice"),
        (asked(WINDOW, json_tensor("macd", np.ones((1, 24))), parameters=ABOUT), "in the window already"),
        (asked(WINDOW, json_tensor("sybmol", ["EUR/USD"], "BYTES")), "did you mean symbol?"),
        (asked(WINDOW, json_tensor("symbol", ["EUR/USD"] * 2, "BYTES")), "2 values for 1 windows"),
        (asked(WINDOW, json_tensor("symbol", ["EUR/USD"], "BYTES"), parameters=ABOUT), "a tensor and as a parameter"),
        (asked(WINDOW, parameters={"sybmol": "EUR/USD"}), "did you mean symbol?"),
        (asked(WINDOW, parameters={"sequence_id": 3, **ABOUT}), "this parameter is not known"),
        (asked(WINDOW, parameters={**ABOUT, "enqueue": "sometimes"}), "best_effort"),
        (asked(WINDOW), "say which with `symbol`"),
        (asked(WINDOW, parameters={"symbol": "EUREUR"}), "two different currencies"),
        (asked(WINDOW, parameters={**ABOUT, "as_of": "yesterday"}), "as_of"),
        (asked(WINDOW, parameters={**ABOUT, "timeframe": "1d"}), "was trained on 1h bars"),
        (asked(WINDOW, parameters=ABOUT, outputs=[{"name": "predicton"}]), "did you mean prediction?"),
        (asked(json_tensor("macd", np.ones((1, 24))), parameters=ABOUT), "sma_20 is missing"),
        (asked(json_tensor("window", np.ones((1, 1, 4))), parameters=ABOUT), "needs at least"),
        (asked(json_tensor("window", np.ones((1001, 3, 4))), parameters=ABOUT), "1 to 1000 windows"),
        (asked(json_tensor("window", np.ones((0, 24, 4))), parameters=ABOUT), "greater than or equal to 1"),
        (
            asked(
                json_tensor("window", np.ones((2, 24, 4))),
                json_tensor("as_of", ["2025-03-05T12:00:00Z", "2045-03-05T12:00:00Z"], "BYTES"),
                parameters=ABOUT,
            ),
            "row 1: this moment is still to come",
        ),
        ({"inputs": 3}, "body.inputs"),
        ({}, "body.inputs"),
        ([], "body"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_the_protocols_shape(
    api: httpx.Client, model: str, request_: Any, words: str
) -> None:
    answer = infer(api, model, request_)
    assert answer.status_code == 422, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert answer.headers["x-correlation-id"] == "the-same"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b"{", {}, "not valid JSON"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, "the body has 2"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, "the body has 2"),
        (b'{"inputs":[]}x', {"Inference-Header-Content-Length": "13"}, "1 bytes behind the JSON"),
        (
            b'{"inputs":[{"name":"window","datatype":"FP64","shape":[1],"parameters":{"binary_data_size":9}}]}12345678',
            {"Inference-Header-Content-Length": "96"},
            "binary_data_size is how many",
        ),
    ],
)
def test_bodies_that_are_none_are_refused(
    api: httpx.Client, model: str, content: bytes, headers: dict[str, str], words: str
) -> None:
    answer = api.post(
        f"/v2/models/{model}/infer", content=content, headers={"Content-Type": "application/json"} | headers
    )
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"]


def test_every_failure_has_that_shape(api: httpx.Client, model: str) -> None:
    request = asked(WINDOW, parameters=ABOUT)
    for answer, status in (
        (infer(api, "nobody", request), 404),
        (api.get("/v2/models/nobody"), 404),
        (api.get("/v2/models/nobody/ready"), 404),
        (api.get(f"/v2/models/{model}/versions/9.9.9/ready"), 404),
        (api.get("/v2/models/Nobody"), 422),
        (api.get("/v2/nowhere"), 404),
        (api.delete(f"/v2/models/{model}"), 405),
        (api.post(f"/v2/models/{model}/infer", content=b"x=1", headers={"Content-Type": "text/plain"}), 415),
        (api.post(f"/v2/models/{model}/infer", content=b"{}", headers={"Origin": "http://example.com"}), 403),
        (infer(api, model, request, **{"Content-Encoding": "gzip"}), 415),
        (api.post(f"/v2/models/{model}/infer", content=b" " * (16 * 1024 * 1024 + 1), headers={
            "Content-Type": "application/json"}), 413),
        (infer(api, model, {**request, "parameters": {**ABOUT, "enqueue": "guaranteed"}}), 409),
    ):  # fmt: skip
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("place", ["{model_id}", "{model_id}/versions/{version}"])
def test_every_failure_is_in_the_document(api: httpx.Client, model: str, place: str) -> None:
    """Of whatever is away or misspelt, and of bodies, in each operation of a model and of a version."""
    document = api.get("/openapi.json").json()
    good = asked(WINDOW, parameters=ABOUT)
    models, versions = (model, "nobody", "No-Body", "a%2Fb", "..", "a%00"), ("1.0.0", "9.9.9", "1.0", "%2e%2e", "1%2F0")
    met: set[int] = set()
    for name, version in ((name, version) for name in models for version in versions):
        for path in (f"/v2/models/{place}", f"/v2/models/{place}/ready", f"/v2/models/{place}/infer"):
            asked_at = path.format(model_id=name, version=version)
            for method, operation in document["paths"][path].items():
                bodies: tuple[Any, ...] = (good, {}, {"inputs": 3}) if method == "post" else (None,)
                for each in bodies:
                    answer = api.request(method, asked_at, json=each, follow_redirects=False)
                    assert str(answer.status_code) in operation["responses"], f"{method} {asked_at}: {answer.text}"
                    if answer.status_code >= 400:
                        assert list(answer.json()) == ["error"]
                        schema = operation["responses"][str(answer.status_code)]["content"]["application/json"][
                            "schema"
                        ]
                        assert schema["$ref"].endswith("/InferenceError")
                    met.add(answer.status_code)
    assert met == {200, 404, 422}


def test_it_says_who_it_is_and_that_it_is_there(api: httpx.Client, model: str) -> None:
    assert api.get("/v2/health/live").json() == {"live": True}
    assert api.get("/v2/health/ready").json() == {"ready": True}
    server = api.get("/v2").json()
    assert (server["name"], server["extensions"]) == ("ml-workbench", ["binary_tensor_data"])
    assert api.get(f"/v2/models/{model}/ready").json() == {"name": model, "ready": True}
    found = api.get(f"/v2/models/{model}/versions/1.0.0").json()
    assert found["versions"] == ["1.1.0", "1.0.0"]
    assert found["inputs"][0] == {"name": "window", "datatype": "FP64", "shape": [-1, -1, 4]}


def test_all_but_health_needs_the_key(guarded: Guarded) -> None:
    stranger = httpx.Client(base_url=guarded.service.url, timeout=60.0)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert stranger.get(path).status_code == 200
    for path in ("/v2", "/v2/models/small", "/v2/models/small/ready"):
        assert stranger.get(path).status_code == 401
        assert list(stranger.get(path).json()) == ["error"]
    refused = infer(stranger, "small", asked(WINDOW, parameters=ABOUT))
    assert refused.status_code == 401
    assert infer(guarded.client, "small", asked(WINDOW, parameters=ABOUT)).status_code == 200
    stranger.close()
