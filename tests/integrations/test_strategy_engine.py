"""The strategy engine's client against a small real engine on a socket: consent, refusals, silence, absence."""

from collections.abc import Iterator
from typing import Any

import pytest

from common_lib.exceptions import UpstreamError, UpstreamTimeoutError
from common_lib.logging import correlated
from ml_workbench_service.integrations import strategy_engine
from ml_workbench_service.integrations.strategy_engine import StrategyEngine
from tests.integrations.model_cards import model_card
from tests.integrations.strategy_engine_server import StrategyEngineServer
from tests.integrations.test_deployment_history import deployment
from tests.service_process import free_port

OWN = "http://127.0.0.1:8005"


@pytest.fixture
def server() -> Iterator[StrategyEngineServer]:
    """An engine in a good mood."""
    with StrategyEngineServer(api_key="key") as running:
        yield running


def client(url: str, api_key: str | None = "key") -> StrategyEngine:
    """Our side."""
    return StrategyEngine(url, api_key=api_key, own_url=OWN)


def test_it_learns_what_the_contract_says(server: StrategyEngineServer) -> None:
    card = model_card(digest="sha256:abc", symbols=("EUR/USD", "GBP/USD"))
    with correlated("corr-1"):
        client(server.url + "/").register(deployment(scaling_factor=0.5, monitoring_level="medium"), card)
    [(headers, body)] = server.received
    assert body == {
        "name": "A model",
        "type": "ml_enhanced",
        "instruments": ["EUR/USD", "GBP/USD"],
        "timeframe": "1h",
        "parameters": {
            "model_id": "model",
            "version": "1.0.0",
            "digest": "sha256:abc",
            "predict_url": f"{OWN}/api/v1/models/model/predict",
            "scaling_factor": 0.5,
            "monitoring_level": "medium",
        },
    }
    assert (headers["idempotency-key"], headers["x-correlation-id"]) == ("deployment-0", "corr-1")
    assert headers["content-type"] == "application/json"


def test_telling_it_twice_is_telling_it_once(server: StrategyEngineServer) -> None:
    for _ in range(2):
        client(server.url).register(deployment(), model_card())
    assert len(server.received) == 2
    assert len(server.strategies) == 1


def test_a_wrong_key_is_a_refusal(server: StrategyEngineServer) -> None:
    with pytest.raises(UpstreamError, match="status 401"):
        client(server.url, "another").register(deployment(), model_card())
    with pytest.raises(UpstreamError, match="status 401"):
        client(server.url, None).register(deployment(), model_card())


@pytest.mark.parametrize(
    ("mood", "message"), [("refuse", "status 409"), ("redirect", "status 307"), ("hang_up", "cannot be reached")]
)
def test_whatever_is_no_consent_is_a_502(server: StrategyEngineServer, mood: Any, message: str) -> None:
    server.mood = mood
    with pytest.raises(UpstreamError, match=message):
        client(server.url).register(deployment(), model_card())
    assert server.strategies == {}


def test_silence_is_a_504_soon(server: StrategyEngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.mood = "slow"
    monkeypatch.setattr(strategy_engine, "READ_TIMEOUT_S", 0.2)
    with pytest.raises(UpstreamTimeoutError, match="did not answer in time"):
        client(server.url).register(deployment(), model_card())
    assert len(server.received) <= 1, "what it may have taken is not sent again"


NO_ENGINE = {"a free port": f"http://127.0.0.1:{free_port()}", "half": "http://[", "a word": "no-address"}


@pytest.mark.parametrize("url", [*NO_ENGINE.values(), "ftp://127.0.0.1"], ids=[*NO_ENGINE, "another scheme"])
def test_absence_is_a_502(url: str) -> None:
    with pytest.raises(UpstreamError, match="STRATEGY_ENGINE_URL"):
        client(url).register(deployment(), model_card())
