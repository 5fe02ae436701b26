"""Folders of bars with an injected signal, and models really trained on them, for the tests that need one.

    return(t + 1) = deviation x (√r2 · signal(t) + √(1 - r2) · storm(t + 1) · noise(t + 1))

`storm` varies slowly around one, as an exchange rate's volatility does. `signal` is a column of the user's own files,
known at the close of bar t; its R² is therefore the oracle's skill.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ml_workbench_service.contracts.contract import iso_of_ms, utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.features.expression_store import ExpressionStore
from ml_workbench_service.resources import Addresses, Workbench
from ml_workbench_service.serving.model import ServedModel, load_model
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.workflows import train
from ml_workbench_service.workflows.plan_training import plan_training

FIRST_MS = int(datetime(2020, 1, 5, 22, tzinfo=UTC).timestamp()) * 1000
DEVIATION = 0.001
INJECTED_R2 = 0.05


@dataclass(frozen=True)
class InjectedBars:
    """Hourly bars of the FX week, oldest first."""

    opened_ms: Ints
    close: Floats
    signal: Floats
    r2: float

    @cached_property
    def oracle(self) -> Floats:
        """(N,) the best forecast of the next bar's return at each bar."""
        return np.asarray(DEVIATION * np.sqrt(self.r2) * self.signal)

    def write(self, folder: Path, symbol: str, signal: Floats | None = None) -> None:
        """`EURUSD_1h.csv` with the column `signal` (this one, if given)."""
        opened = np.concatenate([self.close[:1], self.close[:-1]])
        pl.DataFrame(
            {
                "timestamp": [iso_of_ms(int(each)) for each in self.opened_ms],
                "open": opened,
                "high": np.maximum(opened, self.close) * 1.0001,
                "low": np.minimum(opened, self.close) / 1.0001,
                "close": self.close,
                "signal": self.signal if signal is None else signal,
            }
        ).write_csv(folder / f"{symbol.replace('/', '')}_1h.csv")


def injected_bars(num: int, *, seed: int, r2: float = INJECTED_R2, level: float = 1.1) -> InjectedBars:
    """So many bars from January 2020."""
    hours = FIRST_MS + HOUR_MS * np.arange(int(num * 7 / 5) + 200)
    opened = hours[calendar.is_open(hours)][:num]
    chance = np.random.default_rng(seed)
    signal, noise, drift = chance.standard_normal((3, num))
    storm = np.zeros(num)
    for row in range(1, num):
        storm[row] = 0.99 * storm[row - 1] + 0.05 * drift[row]
    storm = np.exp(storm)
    storm /= np.sqrt(np.mean(storm**2))
    returns = np.zeros(num)
    returns[1:] = DEVIATION * (np.sqrt(r2) * signal[:-1] + np.sqrt(1 - r2) * (storm * noise)[1:])
    return InjectedBars(opened, level * np.exp(np.cumsum(returns)), signal, r2)


def open_bench(folder: Path) -> Workbench:
    """A workbench over `folder/bars` and `folder/registry`, without Redis."""
    root = folder / "registry"
    (folder / "bars").mkdir(parents=True, exist_ok=True)
    history = DeploymentHistory(root)
    return Workbench(
        addresses=Addresses("file", "disabled", False, None, False),
        feature_store=ExpressionStore(LocalFeatureStore(FolderBars(folder / "bars", fixings=no_fixings))),
        history=history,
        registry=FolderModelRegistry(root, live_version=history.live_version),
        state_dir=folder / "state",
        queue=None,
        deployments=None,
        strategy_engine=None,
        multiple_testing=SqliteMultipleTestingLog(folder / "state" / "ledgers.db"),
    )


def train_model(
    bench: Workbench, model_id: str, *, checkpoint: Path, version: str = "1.0.0", report: Recorder | None = None,
    **request: Any,
) -> ModelCard:  # fmt: skip
    """Runs the real training workflow; the published card. `report` hears of its steps."""
    body = {
        "name": model_id,
        "model_id": model_id,
        "model_type": "time_series",
        "target": "price_change_1h",
        "start_date": "2020-01-01T00:00:00Z",
        "end_date": "2025-01-01T00:00:00Z",
        **request,
    }
    body = {name: value for name, value in body.items() if value is not None}
    plan = plan_training(TrainRequest.model_validate(body), bench, unfinished=[], max_memory_gb=16)
    spec = JobSpec(
        id=f"job-{model_id}", kind=JobKind.TRAIN, request=body, plan={**plan.to_json(), "version": version},
        created_at=utc_now(), correlation_id="test",
    )  # fmt: skip
    result = train.run(spec, checkpoint=checkpoint, report=report or Recorder(), workbench=bench)
    assert (result["model_id"], result["version"]) == (model_id, version)
    return bench.registry.card(model_id, version)


def loaded(bench: Workbench, card: ModelCard) -> ServedModel:
    """The version as serving loads it."""
    return load_model(bench.registry.folder(card.id, card.version), card)
