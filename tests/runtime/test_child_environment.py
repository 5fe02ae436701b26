"""Environment of child processes: the door's keys reach none, the Feature Store's only those that fetch bars."""

import pytest

from ml_workbench_service.resources import Addresses
from ml_workbench_service.runtime.child_environment import (
    child_environment,
    predict_worker_environment,
    without_store_key,
)
from ml_workbench_service.settings import OF_THE_DOOR, Settings

ADDRESSES = Addresses(
    feature_store="http://store:1", tracking="disabled", tracking_is_embedded=False, redis=None, redis_is_embedded=True
)


def test_a_child_gets_no_key_that_it_has_no_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OF_THE_DOOR, "FEATURE_STORE_API_KEY"):
        monkeypatch.setenv(name, f"canary-of-{name.lower()}")
    monkeypatch.setenv("BEHIND_PROXY", "10.0.0.1")
    environment = child_environment(Settings(), ADDRESSES)
    assert not OF_THE_DOOR & set(environment)
    assert [name for name, value in environment.items() if "canary-of" in value] == ["FEATURE_STORE_API_KEY"]
    assert "FEATURE_STORE_API_KEY" not in without_store_key(environment)
    assert environment["FEATURE_STORE_URL"] == "http://store:1"


def test_a_predict_worker_gets_the_keys_of_its_door_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OF_THE_DOOR, "FEATURE_STORE_API_KEY"):
        monkeypatch.setenv(name, f"canary-of-{name.lower()}")
    monkeypatch.setenv("BEHIND_PROXY", "10.0.0.1")
    environment = predict_worker_environment(Settings(), ADDRESSES)
    assert environment["BEHIND_PROXY"] == "10.0.0.1"
    given = {name for name, value in environment.items() if "canary-of" in value}
    assert given == {"API_KEY", "KEYS_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA"}
