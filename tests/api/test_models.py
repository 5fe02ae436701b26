"""`/models`: lists, cards, versions, archiving. Cards come from the two trained versions, under ids of these tests."""

import json
from typing import Any

import httpx
import pytest

from ml_workbench_service.contracts.models import ModelList
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.learning.bundle.manifest import write_manifest
from tests.api.conftest import Clone
from tests.api.failures import assert_failure
from tests.conftest import registry_of
from tests.evaluation.test_todays_verdicts import PROVEN, judged, note
from tests.integrations.bundles import flip_a_byte, publish_anew
from tests.service_process import SEED_TRAIN, ServiceProcess

SEED_KEYS = ["id", "name", "type", "version", "status", "created_at", "metrics"]
CARD_KEYS = [
    "family",
    "symbols",
    "timeframe",
    "features",
    "target",
    "horizon",
    "lookback",
    "min_window",
    "outputs",
    "precision",
    "quantization",
    "evaluation",
    "data_source",
    "lineage",
    "digest",
    "size_bytes",
]


def listed(api: httpx.Client, **params: Any) -> list[str]:
    """Ids of the models that a filter leaves."""
    answer = api.get("/api/v1/models", params=params)
    assert answer.status_code == 200, answer.text
    return [model["id"] for model in answer.json()["models"]]


def test_the_list_shows_the_seeds_keys_first(api: httpx.Client) -> None:
    body = api.get("/api/v1/models").json()
    small = next(model for model in body["models"] if model["id"] == "small")
    assert list(small)[:7] == SEED_KEYS
    assert small["name"] == "Small"
    assert small["type"] == "time_series"
    assert small["version"] == "1.1.0"
    assert {"mse", "mae"} <= set(small["metrics"])
    assert body["next_cursor"] is None


def test_a_card_is_full_and_its_metrics_are_the_test_parts(api: httpx.Client) -> None:
    card = api.get("/api/v1/models/small/versions/1.0.0").json()
    assert list(card)[:7] == SEED_KEYS
    assert set(CARD_KEYS) <= set(card)
    assert card["features"] == ["sma_20", "rsi_14", "macd", "bb_width"]
    assert card["symbols"] == ["EUR/USD", "GBP/USD"]
    assert card["outputs"] == ["price_change_1h"]
    assert (card["horizon"], card["lookback"], card["min_window"], card["timeframe"]) == (1, 24, 3, "1h")
    assert card["data_source"] == "simulated"
    assert card["evaluation"]["verdict"] == "not_applicable"
    assert card["metrics"]["mse"] == card["evaluation"]["test"]["mse"]
    assert card["metrics"]["random_walk_mse"] == card["evaluation"]["baselines"]["random_walk"]["mse"]
    assert {"accepted", "reason", "speedup", "max_delta_std", "direction_agreement"} <= set(card["quantization"])
    assert card["precision"] == ("int8" if card["quantization"]["accepted"] else "fp32")
    assert {"job_id", "data_fingerprint", "seeds", "parent_version", "library_versions"} <= set(card["lineage"])


def test_the_second_version_names_the_first_as_its_parent(api: httpx.Client) -> None:
    cards = api.get("/api/v1/models/small/versions").json()["versions"]
    assert [card["version"] for card in cards] == ["1.1.0", "1.0.0"]
    assert [card["lineage"]["parent_version"] for card in cards] == ["1.0.0", None]
    assert cards[0]["digest"] != cards[1]["digest"]


@pytest.mark.parametrize("query", ["", "?limit=1", "?status=deployed", "?status=archived", "?symbol=XXX/YYY"])
def test_a_list_put_together_of_known_lines_is_what_its_contract_writes(api: httpx.Client, query: str) -> None:
    for _ in range(2):  # told anew, and as it was told before
        content = api.get(f"/api/v1/models{query}").content
        assert ModelList.model_validate_json(content).model_dump_json().encode() == content


def test_lists_are_filtered(api: httpx.Client, clone: Clone) -> None:
    clone("filter_plain")
    clone("filter_live")
    body = {"version": "1.0.0", "deployment_target": "local"}
    assert api.post("/api/v1/models/filter_live/deploy", json=body).json()["status"] == "live"
    assert {"filter_plain", "filter_live"} <= set(listed(api, model_type="time_series", symbol="gbp_usd"))
    assert listed(api, model_type="classification") == []
    assert listed(api, symbol="EUR/JPY") == []
    assert "filter_live" in listed(api, status="deployed")
    assert "filter_live" not in listed(api, status="experimental")
    assert "filter_plain" in listed(api, status="experimental")
    live = api.get("/api/v1/models/filter_live").json()
    assert (live["version"], live["status"]) == ("1.0.0", "deployed")


def test_pages_follow_each_other_without_holes(api: httpx.Client, clone: Clone) -> None:
    for number in range(5):
        clone(f"paged_{number}")
    whole, cursor, pages = listed(api), None, []
    while True:
        params = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        body = api.get("/api/v1/models", params=params).json()
        pages.append([model["id"] for model in body["models"]])
        if (cursor := body["next_cursor"]) is None:
            break
    assert [each for page in pages for each in page] == whole
    assert {len(page) for page in pages[:-1]} == {2}
    assert len(pages[-1]) in (1, 2)


def test_a_page_goes_on_where_the_one_before_ended_though_its_last_item_left_the_filter(
    api: httpx.Client, clone: Clone
) -> None:
    for number in range(3):
        clone(f"leaving_{number}", "1.0.0")
    first = api.get("/api/v1/models", params={"status": "experimental", "limit": 200}).json()["models"]
    place = [model["id"] for model in first].index("leaving_0")
    body = api.get("/api/v1/models", params={"status": "experimental", "limit": place + 1}).json()
    assert body["models"][-1]["id"] == "leaving_0"
    assert api.delete("/api/v1/models/leaving_0/versions/1.0.0").json()["status"] == "archived"
    following = listed(api, status="experimental", cursor=body["next_cursor"], limit=2)
    assert following == ["leaving_1", "leaving_2"]


def test_the_newest_are_first_where_that_is_asked(api: httpx.Client, clone: Clone, service: ServiceProcess) -> None:
    clone("made_late")
    card = registry_of(service) / "made_late" / "1.1.0" / "card.json"
    plain = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps(plain | {"created_at": "2031-01-01T00:00:00Z"}), encoding="utf-8")
    publish_anew(card.parent)
    asked = {"order": "newest", "limit": 200}
    found = [(each["created_at"], each["id"]) for each in api.get("/api/v1/models", params=asked).json()["models"]]
    assert found[0] == ("2031-01-01T00:00:00Z", "made_late")
    assert found == sorted(found, reverse=True)
    assert {model_id for _, model_id in found} == {
        each["id"] for each in api.get("/api/v1/models", params={"limit": 200}).json()["models"]
    }
    first = api.get("/api/v1/models", params={"order": "newest", "limit": 1}).json()
    second = api.get("/api/v1/models", params={"order": "newest", "limit": 1, "cursor": first["next_cursor"]}).json()
    assert [each["models"][0]["id"] for each in (first, second)] == [model_id for _, model_id in found[:2]]
    assert_failure(api.get("/api/v1/models", params={"order": "oldest"}), 422, "DATA_VALIDATION_ERROR")


def test_versions_are_paged_too(api: httpx.Client, clone: Clone) -> None:
    clone("many_versions", "1.0.0", "1.2.0", "1.10.0", "2.0.0", "0.9.0")
    body = api.get("/api/v1/models/many_versions/versions", params={"limit": 3}).json()
    assert [card["version"] for card in body["versions"]] == ["2.0.0", "1.10.0", "1.2.0"]
    body = api.get("/api/v1/models/many_versions/versions", params={"cursor": body["next_cursor"]}).json()
    assert [card["version"] for card in body["versions"]] == ["1.0.0", "0.9.0"]
    assert body["next_cursor"] is None


def test_the_etag_is_the_digest_and_an_unchanged_version_is_a_304(api: httpx.Client, clone: Clone) -> None:
    path = f"/api/v1/models/{clone('tagged')}/versions/1.0.0"
    first = api.get(path)
    etag = first.headers["ETag"]
    assert etag == f'"{first.json()["digest"]}"'
    assert api.get("/api/v1/models/tagged/versions/1.1.0").headers["ETag"] != etag
    for offered in (etag, f"W/{etag}", f'"other", {etag}'):
        again = api.get(path, headers={"If-None-Match": offered})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    for offered in ('"other"', etag.strip('"')):
        assert api.get(path, headers={"If-None-Match": offered}).status_code == 200


def test_a_304_never_hides_a_changed_status(api: httpx.Client, clone: Clone) -> None:
    path = f"/api/v1/models/{clone('retagged')}/versions/1.0.0"
    headers = {"If-None-Match": api.get(path).headers["ETag"]}
    seen = []
    for version in ("1.0.0", "1.1.0"):
        body = {"version": version, "deployment_target": "local"}
        assert api.post("/api/v1/models/retagged/deploy", json=body).status_code == 200
        seen.append(api.get(path, headers=headers).json()["status"])
    assert api.delete(path).json()["status"] == "archived"
    seen.append(api.get(path, headers=headers).json()["status"])
    assert seen == ["deployed", "experimental", "archived"]


def test_todays_verdict_stands_beside_the_published_one(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    folder = registry_of(service) / clone("crowded", "1.0.0") / "1.0.0"
    published = judged(0.004)
    card = json.loads((folder / "card.json").read_text())
    card |= {"evaluation": published.model_dump(mode="json"), "certificate": PROVEN.model_dump(mode="json")}
    card["lineage"]["job_id"] = "crowded-job"
    (folder / "card.json").write_text(json.dumps(card))
    publish_anew(folder)
    log = SqliteMultipleTestingLog(registry_of(service).parent / "state" / "ledgers.db")
    note(log, "crowded-job", 0.005)
    path = "/api/v1/models/crowded/versions/1.0.0"
    first = api.get(path)
    assert first.json()["todays_verdict"]["verdict"] == first.json()["evaluation"]["verdict"] == "skill"
    headers = {"If-None-Match": first.headers["ETag"]}
    assert api.get(path, headers=headers).status_code == 304
    for number in range(9):
        note(log, f"crowded-later-{number}", None)
    changed = api.get(path, headers=headers)
    assert changed.status_code == 200, "a 304 would hide today's verdict"
    listed_versions = api.get("/api/v1/models/crowded/versions").json()["versions"]
    for shown in (changed.json(), api.get("/api/v1/models/crowded").json(), *listed_versions):
        assert (shown["todays_verdict"]["verdict"], shown["todays_verdict"]["looks"]) == ("no_skill", 10)
        assert shown["evaluation"]["verdict"] == "skill"
    line = next(each for each in api.get("/api/v1/models", params={"limit": 200}).json()["models"]
                if each["id"] == "crowded")  # fmt: skip
    assert (line["verdict"], line["published_verdict"]) == ("no_skill", "skill")
    assert line["adjusted_p_value"] == changed.json()["todays_verdict"]["adjusted_p_value"] == pytest.approx(0.05)
    assert json.loads((folder / "card.json").read_text()) == card, "the card on disk is never rewritten"


def test_archiving_takes_a_version_out_of_the_candidates_and_keeps_its_files(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    folder = registry_of(service) / clone("shelved") / "1.1.0"
    assert api.get("/api/v1/models/shelved").json()["version"] == "1.1.0"
    answer = api.delete("/api/v1/models/shelved/versions/1.1.0")
    assert (answer.status_code, answer.json()["status"]) == (200, "archived")
    assert api.delete("/api/v1/models/shelved/versions/1.1.0").json() == answer.json()
    assert api.get("/api/v1/models/shelved").json()["version"] == "1.0.0"
    assert (folder / "model.onnx").is_file()
    refused = api.post("/api/v1/models/shelved/deploy", json={"version": "1.1.0", "deployment_target": "local"})
    assert "archived" in assert_failure(refused, 409, "CONFLICT")["message"]
    assert_failure(api.delete("/api/v1/models/shelved/versions/3.0.0"), 404, "VERSION_NOT_FOUND")


def test_the_deployed_version_cannot_be_archived(api: httpx.Client, clone: Clone) -> None:
    clone("kept")
    assert api.post("/api/v1/models/kept/deploy", json={"version": "1.0.0", "deployment_target": "local"}).is_success
    assert_failure(api.delete("/api/v1/models/kept/versions/1.0.0"), 409, "CONFLICT")
    assert api.get("/api/v1/models/kept/versions/1.0.0").json()["status"] == "deployed"


def test_a_broken_bundle_takes_nothing_else_down(api: httpx.Client, service: ServiceProcess, clone: Clone) -> None:
    home = registry_of(service) / clone("half_broken")
    (home / "1.1.0" / "card.json").write_text('{"id": "half_bro', encoding="utf-8")
    assert api.get("/api/v1/models/half_broken").json()["version"] == "1.0.0"
    assert_failure(api.get("/api/v1/models/half_broken/versions/1.1.0"), 409, "BUNDLE_DAMAGED")
    (registry_of(service) / clone("all_broken", "1.0.0") / "1.0.0" / "manifest.json").write_text("[]")
    assert "half_broken" in listed(api)
    assert "all_broken" not in listed(api)
    assert_failure(api.get("/api/v1/models/all_broken"), 409, "BUNDLE_DAMAGED")
    for model_id, left in (("half_broken", ["1.0.0"]), ("all_broken", [])):
        found = api.get(f"/api/v1/models/{model_id}/versions").json()
        assert [each["version"] for each in found["versions"]] == left
        assert [each["state"] for each in found["set_aside"]] == ["damaged"]
    aside = {(each["model_id"], each["version"]) for each in api.get("/api/v1/models").json()["set_aside"]}
    assert {("half_broken", "1.1.0"), ("all_broken", "1.0.0")} <= aside
    thing = api.get("/health/ready").json()["things"]["model_registry"]
    assert thing["state"] == "degraded"
    assert "set aside" in thing["detail"]
    path = "/api/v1/models/half_broken/versions/1.1.0"
    assert api.delete(path, params={"purge": True}).json()["version"] == "1.1.0", "no card is needed for it"
    assert "half_broken" not in {each["model_id"] for each in api.get("/api/v1/models").json()["set_aside"]}


def test_a_forged_version_goes_nowhere(api: httpx.Client, service: ServiceProcess, clone: Clone) -> None:
    """A card that says `skill`, in a folder whose manifest is right, by whoever can write into the registry."""
    model_id = clone("forged", "1.0.0", "1.1.0")
    folder = registry_of(service) / model_id / "1.0.0"
    card = json.loads((folder / "card.json").read_text())
    card["evaluation"] |= {"verdict": "skill", "proof": "recomputed"}
    (folder / "card.json").write_text(json.dumps(card))
    write_manifest(folder)
    assert_failure(api.get(f"/api/v1/models/{model_id}/versions/1.0.0"), 409, "BUNDLE_TAMPERED")
    body = {"symbol": "EUR/USD", "timeframe": "1h", "version": "1.0.0"}
    assert_failure(api.post(f"/api/v1/models/{model_id}/predict", json=body), 409, "BUNDLE_TAMPERED")
    deployment = {"version": "1.0.0", "deployment_target": "local", "force": True}
    assert_failure(api.post(f"/api/v1/models/{model_id}/deploy", json=deployment), 409, "GATE_FAILED")
    (folder / "manifest.sig").unlink()
    assert_failure(api.get(f"/api/v1/models/{model_id}/versions/1.0.0"), 409, "BUNDLE_UNSIGNED")
    assert_failure(api.post(f"/api/v1/models/{model_id}/deploy", json=deployment), 409, "GATE_FAILED")
    assert api.get(f"/api/v1/models/{model_id}").json()["version"] == "1.1.0"


def test_an_unknown_model_names_known_ones(api: httpx.Client) -> None:
    body = assert_failure(api.get("/api/v1/models/smal"), 404, "MODEL_NOT_FOUND")
    assert "small" in body["details"]["known"]


def test_model_types_show_all_five_with_their_families(api: httpx.Client) -> None:
    types = {each["model_type"]: each["families"] for each in api.get("/api/v1/model-types").json()["model_types"]}
    assert list(types) == [
        "time_series",
        "classification",
        "reinforcement_learning",
        "anomaly_detection",
        "feature_engineering",
    ]
    families = {each["name"]: each for each in types["time_series"]}
    assert {"lstm", "gru"} <= set(families)
    assert [name for name, each in families.items() if each["is_default"]] == ["lstm"]
    fields = families["lstm"]["hyperparameters"]["properties"]
    assert {"lstm_units", "dropout", "learning_rate", "batch_size", "epochs", "lookback", "patience"} <= set(fields)
    assert (fields["lookback"]["default"], fields["patience"]["default"]) == (24, 10)
    assert all(field["description"] for field in fields.values())
    assert "gru_units" in families["gru"]["hyperparameters"]["properties"]


def test_features_name_what_can_be_read_with_parameters(api: httpx.Client) -> None:
    features = {each["name"]: each for each in api.get("/api/v1/features").json()["features"]}
    assert {"sma_{period}", "rsi_{period}", "macd", "bb_width_{period}", "atr_{period}", "close"} <= set(features)
    assert features["sma_{period}"]["parameters"][0]["default"] == 20
    assert features["sma_{period}"]["kind"] == "level"
    assert all(each["description"] for each in features.values())


def test_series_are_listed_page_by_page_with_how_they_were_read(api: httpx.Client) -> None:
    path, found, cursor = "/api/v1/series", [], None
    while cursor is not None or not found:
        page = api.get(path, params={"limit": 100, **({"cursor": cursor} if cursor else {})}).json()
        assert set(page) == {"series", "ignored", "next_cursor"}
        found, cursor = [*found, *page["series"]], page["next_cursor"]
    named = {(each["symbol"], each["timeframe"]): each for each in found}
    assert len(named) == len(found) > 100
    assert set(named["EUR/USD", "1d"]) == {
        *("symbol", "timeframe", "source", "origin", "first", "last", "num_rows", "dropped", "time_zone"),
        *("time_zone_from", "price_side", "price_unit", "spread_unit", "spread_time", "columns", "notes", "warnings"),
    }
    assert (named["EUR/USD", "1d"]["source"], named["EUR/USD", "1h"]["source"]) == ("ecb_daily", "simulated")
    assert named["EUR/USD", "1h"]["price_unit"] == "USD for one EUR"
    euros = api.get(path, params={"symbol": "eurusd"}).json()["series"]
    assert {each["symbol"] for each in euros} == {"EUR/USD"}
    assert_failure(api.get(path, params={"cursor": "nothing"}), 422, "DATA_VALIDATION_ERROR")


def test_the_catalogue_says_what_expressions_are_written_with(api: httpx.Client) -> None:
    found = api.get("/api/v1/features").json()
    usages = {each["name"]: each["usage"] for each in found["functions"]}
    assert usages["zscore"] == "zscore(x, bars)"
    assert (usages["at"], usages["of"]) == ("at(timeframe, x)", "of(symbol, x)")
    sets = {each["name"]: each for each in found["sets"]}
    assert sets["@alpha158"]["num_features"] == 157
    assert sets["@alpha158_price"]["columns"] == ["close", "open", "high", "low"]


def test_every_example_of_a_feature_can_be_trained_on(api: httpx.Client) -> None:
    examples = [each["example"] for each in api.get("/api/v1/features").json()["features"]]
    answer = api.post("/api/v1/models/train", json={**SEED_TRAIN, "features": examples, "symbols": ["ABC/XYZ"]})
    body = assert_failure(answer, 422, "DATA_VALIDATION_ERROR")  # for the pair's costs, which are checked later
    assert [each["code"] for each in body["details"]["errors"]] == ["unknown_costs"]


@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors", "recipe.json", "network.json", "manifest.json"])
def test_a_version_that_is_not_what_was_published_does_not_answer(
    api: httpx.Client, service: ServiceProcess, clone: Clone, file: str
) -> None:
    model_id = clone(f"flipped_{file.replace('.', '_')}", "1.0.0")
    flip_a_byte(registry_of(service) / model_id / "1.0.0" / file)
    answer = api.post(f"/api/v1/models/{model_id}/predict", json={"symbol": "EUR/USD", "timeframe": "1h"})
    assert answer.json()["error_code"] in ("BUNDLE_DAMAGED", *(["BUNDLE_TAMPERED"] if file == "manifest.json" else []))
    assert_failure(answer, 409, answer.json()["error_code"])
