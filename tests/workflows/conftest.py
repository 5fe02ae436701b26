"""A workbench over copies of the shared service's models, for the workflows that need trained ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ml_workbench_service.resources import Addresses, Workbench, open_workbench
from ml_workbench_service.settings import EMBEDDED, Settings
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import ServiceProcess

OpenBench = Callable[..., Workbench]


@pytest.fixture
def open_bench(service: ServiceProcess, tmp_path: Path) -> OpenBench:
    """`open_bench("1.0.0", …)` is a workbench on the embedded sample whose registry has these versions of `small`.

    The versions are copies of the two trained ones in turn. `redis` is an address, `engine` the strategy engine's.
    """

    def opened(*versions: str, redis: str | None = None, engine: str | None = None) -> Workbench:
        settings = Settings(
            MODEL_REGISTRY_PATH=tmp_path / "registry", STATE_DIR=tmp_path / "state", STRATEGY_ENGINE_URL=engine
        )
        for place, version in enumerate(versions):
            source = registry_of(service) / "small" / f"1.{place % 2}.0"
            copy_version(source, tmp_path / "registry", "small", version, precision="fp32")
        addresses = Addresses(
            feature_store=EMBEDDED,
            tracking="disabled",
            tracking_is_embedded=False,
            redis=redis,
            redis_is_embedded=False,
        )
        return open_workbench(settings, addresses)

    return opened
