"""A service to be asked, with a deployed version behind most routes, and with keys where they are tried."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.running_service import started
from benchmarks.small_training import REQUEST, write_bars
from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.contracts.contract import iso


class Asked(NamedTuple):
    """Where the service is, and a key for everything; None where it has none."""

    address: str
    key: str | None


def variables(folder: Path) -> dict[str, Any]:
    """Folders of its own, and limits that a fuzzer does not meet."""
    return {
        "STATE_DIR": str(folder / "state"), "MODEL_REGISTRY_PATH": str(folder / "registry"),
        "LOG_DIR": str(folder / "logs"), "FEATURE_STORE_URL": (folder / "bars").as_uri(), "PAGE": "false",
    }  # fmt: skip


@contextmanager
def asked(folder: Path, *, has_keys: bool) -> Iterator[Asked]:
    """A running service over a new folder."""
    (folder / "bars").mkdir(parents=True)
    end = {"end_date": iso(write_bars(folder / "bars" / "EURUSD_1h.csv"))}
    with started(folder, **variables(folder)) as service:
        service.train({**REQUEST, **end, "model_id": "small"})
        service.deploy("small", "1.0.0")
    key = None
    if has_keys:
        key, _ = KeyFile(folder / "state" / KEYS_FILE).create("fuzz", [Scope.ADMIN])
    with started(folder, **variables(folder)) as service:
        yield Asked(service.address, key)
