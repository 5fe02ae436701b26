"""Environment of child processes: every address resolved, the same folders, our code on the path, and no key that the
child has no use for.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from common_lib.storage import told_to_children
from ml_workbench_service.resources import Addresses
from ml_workbench_service.settings import OF_THE_DOOR, Settings

STORE_KEY = "FEATURE_STORE_API_KEY"
NOT_THE_DOORS = frozenset({"WORKBENCH_API_KEY", "STRATEGY_ENGINE_API_KEY", "RAY_AUTH_TOKEN"})
"""What clients of this service, and of others, send."""
OF_WORK = frozenset({
    "LOG_LEVEL", "LOG_FORMAT", "ACCELERATOR", "MAX_TRAINING_MEMORY", "RAY_GPUS", "TRACES", "OTEL_SERVICE_NAME",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
})  # fmt: skip
"""Variables that go to workers on other machines."""


def child_environment(settings: Settings, addresses: Addresses) -> dict[str, str]:
    """For children that fetch bars: workers and the process that reads tables."""
    resolved = {"FEATURE_STORE_URL": addresses.feature_store, "EXPERIMENT_TRACKING_URI": addresses.tracking}
    if addresses.redis is not None:
        resolved["REDIS_URL"] = addresses.redis
    environment = settings.environment(**resolved)
    environment |= told_to_children(settings.STATE_DIR.resolve(), settings.registry_folder)
    home = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = ":".join(filter(None, [home, environment.get("PYTHONPATH")]))
    return environment


def ray_worker_environment(settings: Settings, addresses: Addresses) -> dict[str, str]:
    """For workers on a Ray cluster: what says how to work. Their job they reach by its own address and token, and by
    way of it all else; no address, folder or key of this service is among them.

    The code's own folder is, where neither an image nor a working directory brings the code.
    """
    names = {*OF_WORK, *(("PYTHONPATH",) if settings.RAY_IMAGE is None and settings.RAY_WORKING_DIR is None else ())}
    return {name: value for name, value in child_environment(settings, addresses).items() if name in names}


def without_store_key(environment: Mapping[str, str]) -> dict[str, str]:
    """For those that do not: agents, the tracker, the page."""
    return {name: value for name, value in environment.items() if name != STORE_KEY}


def predict_worker_environment(settings: Settings, addresses: Addresses) -> dict[str, str]:
    """For predict workers, which are doors of the service themselves: its keys and certificates, and no others."""
    of_the_door = {name: os.environ[name] for name in OF_THE_DOOR - NOT_THE_DOORS if name in os.environ}
    return without_store_key(child_environment(settings, addresses)) | of_the_door
