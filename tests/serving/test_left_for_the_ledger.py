"""What serving leaves for the ledger: the live version's answers, in order, with the row as the network read it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, utc_now
from ml_workbench_service.contracts.deployment import Deployment, MonitoringLevel, is_monitored
from ml_workbench_service.contracts.market import Bools
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.runs.records import RecordRun
from ml_workbench_service.evaluation.drift import InputReference
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.market.outcomes.live_metrics import bar_numbers
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.model_server import ModelServer
from ml_workbench_service.serving.predict import prepare
from ml_workbench_service.serving.runs.questions import QuestionRun
from ml_workbench_service.workflows.monitor_model import _reference

Left = list[tuple[Answered, Making, bool]]


class Remembering:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.left: Left = []

    def record(self, answered: Answered, making: Making, *, is_sampled: bool) -> None:
        """See `contracts.ledger.Ledger`."""
        self.left.append((answered, making, is_sampled))

    def record_run(self, run: RecordRun, making: Making, *, is_sampled_N: Bools) -> None:
        """See `contracts.ledger.Ledger`."""
        for number, is_sampled in enumerate(is_sampled_N.tolist()):
            self.record(run.answered(number), making, is_sampled=is_sampled)


class Shelf:
    """A registry that a test may deploy in, and what serving left."""

    def __init__(self, root: Path) -> None:
        self.history = DeploymentHistory(root)
        self.ledger = Remembering()
        registry = FolderModelRegistry(root, live_version=self.history.live_version)
        self.serving = ModelServer(registry, live=self.history.live, ledger=self.ledger)

    def deploy(self, level: MonitoringLevel) -> None:
        """Makes 1.0.0 live."""
        deployment = Deployment(
            id=f"d-{level}", model_id="small", version="1.0.0", deployment_target="local", status="live",
            previous_version=None, created_at=utc_now(), monitoring_level=level,
        )  # fmt: skip
        self.history.append(deployment)


@pytest.fixture
def shelf(bench: Workbench, tmp_path: Path) -> Iterator[Shelf]:
    shutil.copytree(bench.registry.root, tmp_path / "registry")
    shelf = Shelf(tmp_path / "registry")
    yield shelf
    shelf.serving.close()


async def test_a_candidates_answer_is_left_nowhere(shelf: Shelf, history: SymbolHistory) -> None:
    chosen = await shelf.serving.choose("small", None)
    await shelf.serving.answer(chosen, history.question(500), "c")
    shelf.deploy("high")
    await shelf.serving.answer(await shelf.serving.choose("small", "1.1.0"), history.question(500), "c")
    assert shelf.ledger.left == []


async def test_single_and_batch_answers_leave_the_row_that_the_network_read(
    shelf: Shelf, history: SymbolHistory
) -> None:
    shelf.deploy("high")
    chosen = await shelf.serving.choose("small", None)
    questions = [history.question(row) for row in (500, 700, 900)]
    records = [await shelf.serving.answer(chosen, each, "c") for each in questions]
    prepared = [prepare(chosen.model, each) for each in questions]
    records += (await shelf.serving.answer_many(chosen, QuestionRun.of(prepared), "c")).records()
    assert [each.record for each, _, _ in shelf.ledger.left] == records
    for (answered, making, is_sampled), each in zip(shelf.ledger.left, [*prepared, *prepared], strict=True):
        assert each.rows_TF is not None
        wanted = chosen.model.float32.predict(each.rows_TF[None]).last_rows_NF[0]
        assert answered.last_row_F is not None
        assert np.allclose(answered.last_row_F, wanted, atol=1e-6)
        assert answered.bar_volatility == each.question.bar_volatility
        assert making.target is not None
        assert (making.target.name, making.horizon, is_sampled) == ("price_change_1h", 1, True)


@pytest.mark.parametrize(("level", "share"), [("low", 0.01), ("medium", 0.1), ("high", 1.0)])
def test_a_level_samples_its_share_by_the_id_alone(level: MonitoringLevel, share: float) -> None:
    ids = [f"{np.random.default_rng(number).integers(2**60):032x}" for number in range(20_000)]
    found = [is_monitored(each, level) for each in ids]
    assert found == [is_monitored(each, level) for each in ids]
    assert np.mean(found) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000) + 1e-12)


async def test_answers_about_the_training_part_show_no_drift(
    shelf: Shelf, bench: Workbench, history: SymbolHistory
) -> None:
    """The reference in the bundle is of the same values, in the same units, as what serving leaves."""
    shelf.deploy("high")
    chosen = await shelf.serving.choose("small", None)
    end = int(np.searchsorted(history.table.available_at_ms, chosen.model.borders_ms["validation"]))
    prepared = [prepare(chosen.model, history.question(row)) for row in range(200, end)]
    await shelf.serving.answer_many(chosen, QuestionRun.of(prepared), "c")
    file = bench.registry.folder("small", "1.0.0") / "recipe.json"
    reference = _reference(file, 0)
    assert isinstance(reference, InputReference)
    rows = np.stack([each.last_row_F for each, _, _ in shelf.ledger.left if each.last_row_F is not None])
    bars = bar_numbers(np.array([each.question.as_of_ms for each in prepared]), TIMEFRAMES_MS["1h"])
    for drift in reference.drift(rows, bars).features:
        assert drift.state in ("stable", "insufficient_data")
        assert drift.ks_statistic is None or drift.ks_statistic < 0.1
        assert drift.outside_share < 0.005
    shifted = rows.copy()
    shifted[:, 0] += 2
    assert reference.drift(shifted, bars).worst_feature == reference.features[0]
