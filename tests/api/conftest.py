"""The shared service's models under other ids, and one service behind a key, with a strategy engine and no agent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.integrations.strategy_engine_server import StrategyEngineServer
from tests.redis_server import RedisForTests
from tests.service_process import ServiceProcess

KEY = "s3cret-ßchlüssel"
ENGINE_KEY = "the-engines-öwn-key"
Clone = Callable[..., str]


@pytest.fixture(scope="session")
def clone(service: ServiceProcess) -> Clone:
    """`clone("mine")` publishes both versions of `small` as versions of `mine` on the shared service."""

    def publish(model_id: str, *versions: str) -> str:
        root = registry_of(service)
        for place, version in enumerate(versions or ("1.0.0", "1.1.0")):
            copy_version(root / "small" / f"1.{place % 2}.0", root, model_id, version)
        return model_id

    return publish


@dataclass(frozen=True)
class Guarded:
    """A service behind an API_KEY, and what stands around it."""

    service: ServiceProcess
    engine: StrategyEngineServer
    redis: RedisForTests

    @property
    def client(self) -> httpx.Client:
        """Its HTTP client, which sends the key."""
        return self.service.client


@pytest.fixture(scope="package")
def guarded(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """API_KEY, STRATEGY_ENGINE_URL and REDIS_URL set, AGENT_AUTOSTART off, one GB for trainings; two models."""
    folder = tmp_path_factory.mktemp("guarded")
    for model_id in ("small", "engine_model"):
        for version in ("1.0.0", "1.1.0"):
            copy_version(registry_of(service) / "small" / version, folder / "registry", model_id, version)
    redis = RedisForTests(folder / "redis_state")
    with StrategyEngineServer(api_key=ENGINE_KEY.encode().decode("latin-1")) as engine:
        running = ServiceProcess(
            folder,
            API_KEY=KEY,
            STRATEGY_ENGINE_URL=engine.url,
            STRATEGY_ENGINE_API_KEY=ENGINE_KEY,
            REDIS_URL=redis.url,
            AGENT_AUTOSTART="false",
            MAX_TRAINING_MEMORY="1",
            LOG_FORMAT="json",
        )
        running.client.headers["X-API-Key"] = KEY
        try:
            running.start()
            yield Guarded(running, engine, redis)
        finally:
            running.close()
            redis.stop()
