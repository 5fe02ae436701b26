"""Who chose by a test part has looked at it, whatever it was called then."""

from pathlib import Path

from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial
from tests.trained_models import injected_bars, open_bench, train_model
from tests.workflows.test_run_experiment import BASE, NUM_BARS, experiment, run


def test_trials_that_were_ranked_on_what_is_a_test_part_now_count_as_looks_at_it(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    injected_bars(NUM_BARS, seed=2, r2=0.2).write(tmp_path / "bars", "EUR/USD")
    wide = {**BASE, "validation_split": 0.6, "hyperparameters": {"epochs": 2, "batch_size": 64, "lookback": 3}}
    (tmp_path / "search").mkdir()
    run(experiment(bench, name="searched", base={**wide, "validation_split": 0.2}), bench, tmp_path / "search")
    card = train_model(bench, "judged", checkpoint=tmp_path, **{**wide, "name": "judged"})
    assert card.evaluation.significance is not None
    assert card.evaluation.significance.looks == 2 + 5, (
        "its own and the winner's, which is a trial too, and four trials"
    )
    setting = PartRead(
        id="grid/agent/0", subject="price", symbols=("EUR/USD",), start_ms=0, end_ms=to_ms(utc_now()), at=utc_now()
    )
    bench.multiple_testing.record_trial(Trial(read=setting))  # the grid itself notes its look
    again = train_model(bench, "narrow", checkpoint=tmp_path, **{**wide, "name": "narrow", "validation_split": 0.2})
    assert again.evaluation.significance is not None
    assert again.evaluation.significance.looks == 3, "trials before the test part are no looks"


def test_nothing_is_taken_from_the_version_before(tmp_path: Path) -> None:
    """A parent's selection data cannot reach a test part: with one and without one the weights are the same bits."""
    bench = open_bench(tmp_path)
    injected_bars(700, seed=4).write(tmp_path / "bars", "EUR/USD")
    asked = {
        "family": "linear", "features": ["signal"], "symbols": ["EUR/USD"], "validation_split": 0.4,
        "hyperparameters": {"lookback": 3, "epochs": 1},
    }  # fmt: skip
    parent = {**asked, "hyperparameters": {"lookback": 3, "epochs": 2}, "seeds": [5]}
    train_model(bench, "child", checkpoint=tmp_path / "parent", **parent)
    child = train_model(bench, "child", checkpoint=tmp_path / "child", version="1.1.0", **asked)
    orphan = train_model(bench, "orphan", checkpoint=tmp_path / "orphan", **asked)
    assert (child.lineage.parent_version, orphan.lineage.parent_version) == ("1.0.0", None)
    weights = [
        (bench.registry.folder(card.id, card.version) / "weights.safetensors").read_bytes() for card in (child, orphan)
    ]
    assert weights[0] == weights[1]
