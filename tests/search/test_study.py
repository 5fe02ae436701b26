"""The search itself, on a landscape that is known: what it tries, what it gives up, and that a kill changes nothing."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.search.space import Dimension
from ml_workbench_service.search.study import Search, SearchStrategy

RATE = Dimension("rate", "float", 1e-4, 1e-1, is_log=True)
UNITS = Dimension("units", "int", 4, 64)
FEATURES = Dimension("features", "choice", choices=(["a"], ["a", "b"], None))
SPACE = (RATE, UNITS, FEATURES)
STEPS = 9
KINDS: list[dict[str, Any]] = [
    {"sampler": "tpe"},
    {"sampler": "random"},
    {"sampler": "tpe", "pruner": "median"},
    {"sampler": "tpe", "pruner": "hyperband", "most_steps": STEPS},
]


def landscape(params: dict[str, Any], step: int) -> float:
    """Best at a rate of exp(-5); the units matter little, the features not at all."""
    return -abs(math.log(params.get("rate", 1e-2)) + 5) - 0.005 * abs(params.get("units", 30) - 30) + 0.1 * step


def run(
    num_trials: int, before: Sequence[TrialRecord] = (), dimensions: Sequence[Dimension] = SPACE, **options: Any
) -> tuple[Search, list[TrialRecord]]:
    """All trials that are to be made, one after the other."""
    search = Search(dimensions, SearchStrategy(num_trials, seed=3, **options), before=before)
    made = []
    while (proposal := search.next()) is not None:
        curve, state = [], "complete"
        for step in range(1, STEPS + 1):
            curve.append((step, landscape(proposal.params, step)))
            if search.heard(proposal.number, *curve[-1]):
                state = "pruned"
                break
        made.append(
            TrialRecord(
                number=proposal.number, state=state, params=proposal.params, curve=tuple(curve),
                value=curve[-1][1] if state == "complete" else None,
            )
        )  # fmt: skip
        search.ended(made[-1])
    return search, made


def running(record: TrialRecord) -> TrialRecord:
    return TrialRecord(number=record.number, state="running", params=record.params)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_same_seed_makes_the_same_trials_and_a_kill_changes_none(options: dict[str, Any]) -> None:
    search, whole = run(25, **options)
    assert [each.number for each in whole] == list(range(25))
    assert run(25, **options)[1] == whole
    resumed, rest = run(25, whole[:12], **options)
    assert rest == whole[12:]
    assert resumed.best == search.best
    assert run(25, [*whole[:12], running(whole[12])], **options)[1] == whole[12:]
    assert run(25, whole, **options)[1] == [], "nothing is left to do"


def test_trials_that_were_under_way_are_made_again_first_and_torn_ones_are_not_counted_twice() -> None:
    _, whole = run(20)
    before = [each if each.number not in (5, 7) else running(each) for each in whole[:10] if each.number != 3]
    _, rest = run(20, before)
    assert [each.number for each in rest] == [5, 7, *range(10, 20)]
    assert [each.params for each in rest[:2]] == [whole[5].params, whole[7].params]


def test_tpe_finds_what_matters() -> None:
    search, _ = run(60)
    assert search.best is not None
    assert search.best.value is not None
    assert search.best.value > landscape({}, STEPS) - 0.3
    assert abs(math.log(search.best.params["rate"]) + 5) < 0.25
    importance = search.importance()
    assert next(iter(importance)) == "rate"
    assert importance["rate"] > 0.7
    assert sum(importance.values()) == pytest.approx(1, abs=1e-3)


def test_parameters_come_in_their_own_types() -> None:
    _, made = run(12)
    for each in made:
        assert isinstance(each.params["units"], int)
        assert isinstance(each.params["rate"], float)
        assert each.params["features"] in FEATURES.choices


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_pruner_gives_up_the_hopeless_and_never_the_best(pruner: Any) -> None:
    plain, whole = run(30)
    search, made = run(30, pruner=pruner, most_steps=STEPS)
    pruned = [each for each in made if each.state == "pruned"]
    assert 5 < len(pruned) < 29
    assert all(len(each.curve) >= 3 for each in pruned), "the first steps prove nothing"
    assert search.best is not None
    assert plain.best is not None
    assert search.best.state == "complete"
    assert abs(math.log(search.best.params["rate"]) + 5) < 0.5
    assert sum(len(each.curve) for each in made) < 0.8 * sum(len(each.curve) for each in whole)


def test_a_grid_visits_every_point_once_though_it_is_killed() -> None:
    dimensions = (FEATURES, Dimension("units", "int", 1, 3))
    _, whole = run(9, dimensions=dimensions, sampler="grid")
    assert len({repr(each.params) for each in whole}) == 9
    assert [each.params["units"] for each in whole] != sorted(each.params["units"] for each in whole)
    _, rest = run(9, [*whole[:3], running(whole[3])], dimensions=dimensions, sampler="grid")
    assert rest == whole[3:]


def test_the_first_among_equals_is_the_best_and_failed_trials_never_are() -> None:
    search = Search((UNITS,), SearchStrategy(4, sampler="random"))
    values = (None, 1.0, 1.0, 0.5)
    for value in values:
        proposal = search.next()
        assert proposal is not None
        search.ended(
            TrialRecord(
                number=proposal.number, state="failed" if value is None else "complete", params=proposal.params,
                value=value,
            )
        )  # fmt: skip
    assert search.best is not None
    assert search.best.number == 1
    assert search.importance() == {}, "three trials tell nothing"
    assert search.next() is None


def test_without_a_complete_trial_the_best_of_the_pruned_stands() -> None:
    search = Search((UNITS,), SearchStrategy(2, sampler="random"))
    for number, last in enumerate((0.2, 0.7)):
        proposal = search.next()
        assert proposal is not None
        record = TrialRecord(number=number, state="pruned", params=proposal.params, curve=((1, 0.0), (2, last)))
        search.heard(number, 1, 0.0)
        search.ended(record)
    assert search.best is not None
    assert search.best.number == 1


def test_trials_side_by_side_are_different_and_end_in_any_order() -> None:
    search = Search(SPACE, SearchStrategy(6, num_parallel=6))
    proposals = [search.next() for _ in range(6)]
    assert search.next() is None
    assert search.num_running == 6
    assert len({repr(each) for each in proposals}) == 6
    for proposal in reversed(proposals):
        assert proposal is not None
        search.ended(TrialRecord(number=proposal.number, state="complete", params=proposal.params, value=1.0))
    assert search.best is not None
    assert search.best.number == 0
