"""The smallest size of each table: a real training, a real search, and a forecast asked of what was published."""

import pytest

from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from studies import injected_signal, null_series, real_data
from studies.fits import bench_on, experiment_once, training_request
from studies.injected_signal import InjectedSignal
from studies.null_series import Trial
from studies.series import null_series as null_series_of

pytestmark = pytest.mark.more


def test_a_null_series_is_judged_by_the_product() -> None:
    judged = null_series.reach_verdict(Trial(number=1, seed=0, num_bars=3_000, family="linear"))
    assert judged.kind == "garch and jumps"
    assert judged.certificate == "passed"
    assert judged.verdict == "insufficient_data"  # 600 test moments cannot tell
    assert judged.economic != "profitable"


def test_a_search_on_a_null_series_is_judged_too() -> None:
    judged = null_series.reach_verdict(Trial(number=0, seed=0, num_bars=3_000, family="linear", num_trials=3))
    assert judged.verdict in ("insufficient_data", "no_skill")
    assert judged.certificate == "passed"


def test_parallel_trials_read_made_up_bars_as_they_are_read_here() -> None:
    """Prices far from the pair's fixings, which a store that holds them against those would refuse."""
    series = next(each for each in (null_series_of(2_000, seed=0, number=number) for number in range(20))
                  if each.close.min() > 1.6 or each.close.max() < 0.9)  # fmt: skip
    body = {
        "name": "Search",
        "base": training_request("searched", ["rsi_14"], hyperparameters={"lookback": 3, "epochs": 1}),
        "search_space": {"learning_rate": {"choices": [1e-3, 3e-3, 1e-2, 3e-2]}},
        "sampler": "grid",
    }
    with bench_on(series.write) as workbench:
        tuned = experiment_once(workbench, body, max_workers=2)
        trials = TrialLog(tuned.folder / TRIALS_FILE).trials()
    assert [each.state for each in trials] == ["complete"] * 4, [each.message for each in trials]


def test_an_injected_signal_is_recovered_by_what_was_published() -> None:
    found = injected_signal.find(InjectedSignal(number=0, seed=0, num_bars=8_000, lookback=4))
    assert found.certificate == "unprovable"  # a column of the user's own
    assert 0.2 < found.recovery < 1
    assert 0 < found.found_r2 < 0.03
    assert found.best_r2 == pytest.approx(0.01, abs=0.01)


def test_the_rows_of_real_data_name_every_family() -> None:
    from ml_workbench_service import families as families
    from ml_workbench_service.learning.interfaces.family import Family

    assert {entry.family for entry in (*real_data.BETS, *real_data.OTHERS)} == set(Family.known)


def test_a_row_of_real_data_says_what_the_card_says() -> None:
    entry = real_data.Entry("linear", "time_series", "price_change_1d", {"lookback": 3, "epochs": 2})
    (card,) = real_data.train_all((entry,))
    cells = real_data.row(entry, card)
    significance = card.evaluation.significance
    assert significance is not None
    assert card.data_source == "ecb_daily"
    assert cells[0] == "`linear`"
    assert f"`{card.evaluation.verdict}`" in cells
    assert cells[6] == "1" == str(significance.looks)
    assert cells[5] == f"{significance.adjusted_p_value:.3f}"
