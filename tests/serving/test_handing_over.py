"""What predict workers hand over makes the ledger of one process, and an hour's price is handed over once."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.handover import HANDED, HandedAnswer
from ml_workbench_service.contracts.outcomes import Answered
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_ledger.reader import Wanted
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving import handing_over
from ml_workbench_service.serving.handing_over import HandingOver
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.model_server import ModelServer
from ml_workbench_service.serving.predict import prepare
from ml_workbench_service.serving.runs.questions import QuestionRun
from tests.ledger_entries import answered, keep, making, opened
from tests.prediction_records import MONDAY

NUM_HOURS, A_BAR, NUM_WORKERS = 60, 8, 2


def questions(seed: int) -> list[tuple[Answered, bool, int]]:
    """Answers in the order in which they were given: whether each is sampled, and which worker gave it. Some are late,
    about the past, without a price, or about a future that is not near.
    """
    chance, found = np.random.default_rng(seed), []
    for hour in range(NUM_HOURS):
        for place in range(A_BAR):
            about, changes = hour, {}
            match int(chance.integers(12)):
                case 0:
                    about = max(0, hour - int(chance.integers(1, 4)))
                case 1:
                    changes = {"sample": "historical"}
                case 2:
                    changes = {"price": None}
                case 3:
                    about = hour + 5
                case 4:
                    changes = {"symbol": "GBP/USD"}
            price = float(np.round(1.1 + 0.01 * np.sin(about), 4))
            entry = answered(
                about,
                **{
                    "price": price, "prediction_id": f"{hour}-{place}",
                    "timestamp": MONDAY + timedelta(hours=hour, seconds=place), **changes,
                },
            )  # fmt: skip
            found.append((entry, bool(chance.random() < 0.15), int(chance.integers(NUM_WORKERS))))
    return found


def shown(ledger: PredictionLedger) -> dict[str, object]:
    """Every row, with what came true of it."""
    rows, _ = ledger.page(Wanted(), limit=1000)
    return {row.prediction_id: row for row in rows}


async def handed_over(asked: Sequence[tuple[Answered, bool, int]]) -> list[HandedAnswer]:
    """What so many workers send, in one order."""
    sent: list[bytes] = []
    workers = [HandingOver(sent.extend) for _ in range(NUM_WORKERS)]
    for worker in workers:
        worker.start()
    for entry, is_sampled, number in asked:
        workers[number].record(entry, making(), is_sampled=is_sampled)
        await asyncio.sleep(0)
    items = HANDED.validate_json(b"[" + b",".join(sent) + b"]")
    return [each for each in items if isinstance(each, HandedAnswer)]


@pytest.mark.parametrize("seed", range(4))
async def test_the_ledger_is_that_of_one_process(seed: int, tmp_path: Path) -> None:
    asked = questions(seed)
    items = await handed_over(asked)
    with opened(tmp_path / "one.db") as one, opened(tmp_path / "several.db") as several:
        for entry, is_sampled, _ in asked:
            keep(one, entry, is_sampled=is_sampled)
        for each in items:
            several.record(each.answered(), each.made_by(), is_sampled=each.is_sampled)
        assert several.flush(10.0)
        rows = shown(one)
        assert shown(several) == rows
    assert len({row.outcome.state for row in rows.values()}) > 1  # type: ignore[attr-defined]
    num_sampled = sum(is_sampled for _, is_sampled, _ in asked)
    num_untimely = sum(entry.record.as_of > entry.record.timestamp + timedelta(hours=1) for entry, _, _ in asked)
    assert len(items) <= num_sampled + num_untimely + 2 * NUM_WORKERS * NUM_HOURS
    assert len(items) < 0.75 * len(asked)


async def test_a_price_is_handed_over_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control process that has begun anew does not know it."""
    asked = [(answered(3, prediction_id=str(number)), False, 0) for number in range(5)]
    assert len(await handed_over(asked)) == 1
    monkeypatch.setattr(handing_over, "PRICES_KNOWN_S", -1.0)
    assert len(await handed_over(asked)) == 5


async def test_of_a_run_the_sample_and_new_prices_are_handed_over(
    bench: Workbench, history: SymbolHistory, tmp_path: Path
) -> None:
    shutil.copytree(bench.registry.root, tmp_path / "registry")
    deployments = DeploymentHistory(tmp_path / "registry")
    registry = FolderModelRegistry(tmp_path / "registry", live_version=deployments.live_version)
    sent: list[bytes] = []
    ledger = HandingOver(sent.extend)
    serving = ModelServer(registry, live=deployments.live, ledger=ledger)
    live = Deployment(
        id="d", model_id="small", version="1.0.0", deployment_target="local", status="live",
        previous_version=None, created_at=utc_now(), monitoring_level="low",
    )  # fmt: skip
    deployments.append(live)
    ledger.start()
    chosen = await serving.choose("small", None)
    rows = [row for row in range(500, 520) for _ in range(10)]
    asked = [prepare(chosen.model, history.question(row)) for row in rows]
    run = await serving.answer_many(chosen, QuestionRun.of(asked), "c")
    serving.close()
    items = [json.loads(each) for each in sent]
    assert len({each["record"]["as_of"] for each in items}) == 20
    num_sampled = sum(each["is_sampled"] for each in items)
    assert num_sampled == int(run.is_monitored("low").sum())
    assert 20 <= len(items) <= 20 + num_sampled
