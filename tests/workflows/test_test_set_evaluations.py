"""What counts as a look: whatever of a segment of time somebody could have chosen by, under any name."""

from pathlib import Path

import pytest

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.multiple_testing import PartRead, Subject
from ml_workbench_service.resources import Workbench
from tests.trained_models import injected_bars, loaded, open_bench, train_model

NUM_BARS = 700


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workbench, ModelCard]:
    """A price and a volatility at once, and a walk forward."""
    folder = tmp_path_factory.mktemp("looks")
    bench = open_bench(folder)
    injected_bars(NUM_BARS, seed=5).write(folder / "bars", "EUR/USD")
    card = train_model(
        bench, "looker", checkpoint=folder / "checkpoint", family="linear", features=["signal"],
        target=["price_change_1h", "volatility_5h"], symbols=["EUR/USD"], validation_split=0.4,
        hyperparameters={"lookback": 3, "epochs": 1}, cv={"folds": 2},
    )  # fmt: skip
    return bench, card


def part(start_ms: int, end_ms: int, *, subject: Subject = "price", symbol: str = "EUR/USD") -> PartRead:
    """What somebody else would read."""
    return PartRead(id="else", subject=subject, symbols=(symbol,), start_ms=start_ms, end_ms=end_ms, at=utc_now())


def borders(bench: Workbench, card: ModelCard) -> dict[str, int]:
    """Of the published training's parts."""
    return loaded(bench, card).borders_ms


def test_every_subject_whose_figures_stand_on_the_card_was_looked_at(trained: tuple[Workbench, ModelCard]) -> None:
    bench, card = trained
    test_ms = borders(bench, card)["test"]
    for subject in ("price", "volatility"):
        assert bench.multiple_testing.num_evaluations(part(test_ms, test_ms + 1, subject=subject)) == 1
    assert bench.multiple_testing.num_evaluations(part(test_ms, test_ms + 1, subject="regime")) == 0


def test_folds_are_looks_at_the_time_that_they_judged(trained: tuple[Workbench, ModelCard]) -> None:
    bench, card = trained
    walked, test_ms = card.evaluation.walk_forward, borders(bench, card)["test"]
    assert walked is not None
    first_ms = int(walked.folds[0].test_start.timestamp() * 1000)
    assert bench.multiple_testing.num_evaluations(part(first_ms, first_ms + 1)) == 1
    assert bench.multiple_testing.num_evaluations(part(test_ms - 1, test_ms)) == 1
    assert bench.multiple_testing.num_evaluations(part(first_ms - 1, first_ms)) == 0
    assert card.evaluation.significance is not None
    assert card.evaluation.significance.looks == 1, "its own folds end where its test part begins"


def test_combinations_are_a_look_at_all_the_time_before_the_test_part(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    injected_bars(NUM_BARS, seed=5).write(tmp_path / "bars", "EUR/USD")
    card = train_model(
        bench, "combined", checkpoint=tmp_path / "checkpoint", family="linear", features=["signal"],
        target="price_change_1h", symbols=["EUR/USD"], validation_split=0.4,
        hyperparameters={"lookback": 3, "epochs": 1}, cv={"scheme": "combinatorial_purged", "groups": 4},
        sample_weights="uniqueness",
    )  # fmt: skip
    found, test_ms = card.evaluation.combinatorial, borders(bench, card)["test"]
    assert found is not None
    assert len(found.paths) == 3
    first_ms = int(found.groups[0].start.timestamp() * 1000)
    assert bench.multiple_testing.num_evaluations(part(first_ms + 1, first_ms + 2)) == 1
    assert bench.multiple_testing.num_evaluations(part(test_ms - 1, test_ms)) == 1
    assert card.evaluation.significance is not None
    assert card.evaluation.significance.looks == 1, "its own combinations end where its test part begins"
    assert card.split.sample_weights is not None
    assert 0 < card.split.sample_weights.distinct_labels <= card.split.num_windows["train"]
    assert card.certificate is not None
    assert card.certificate.status != "failed"


def test_a_pair_the_other_way_round_is_the_same_pair(trained: tuple[Workbench, ModelCard]) -> None:
    bench, card = trained
    test_ms = borders(bench, card)["test"]
    assert bench.multiple_testing.num_evaluations(part(test_ms, test_ms + 1, symbol="USD/EUR")) == 1
    assert bench.multiple_testing.num_evaluations(part(test_ms, test_ms + 1, symbol="EUR/GBP")) == 0
