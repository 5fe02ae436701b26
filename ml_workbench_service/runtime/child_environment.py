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
NOT_THE_DOORS = frozenset({"WORKBENCH_API_KEY", "STRATEGY_ENGINE_API_KEY"})
"""What clients of this service, and of others, send."""


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


def without_store_key(environment: Mapping[str, str]) -> dict[str, str]:
    """For those that do not: agents, the tracker, the page."""
    return {name: value for name, value in environment.items() if name != STORE_KEY}


def predict_worker_environment(settings: Settings, addresses: Addresses) -> dict[str, str]:
    """For predict workers, which are doors of the service themselves: its keys and certificates, and no others."""
    of_the_door = {name: os.environ[name] for name in OF_THE_DOOR - NOT_THE_DOORS if name in os.environ}
    return without_store_key(child_environment(settings, addresses)) | of_the_door
