"""Several seeds, one model: every family's members answer together as their mean, in numpy and in one graph."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.ensemble import action_weights, combine, seed_spread, train_seeds
from ml_workbench_service.learning.interfaces.checkpoint import CHECKPOINT_FILE, Checkpoint
from ml_workbench_service.learning.interfaces.family import Family, Trained, families_of
from ml_workbench_service.testing.probes import probe_of
from ml_workbench_service.testing.synthetic import OneThread, Recorder, cut, problem, symbol_rows

SEEDS = (3, 8, 5)
HELD = np.array([-1, 0, 1, 0, -1, 1, 1], dtype=np.float32)
NETWORKS = [kind for kind in Family.known.values() if kind.model_type is not ModelType.FEATURE_ENGINEERING]
every_network = pytest.mark.parametrize("kind", NETWORKS, ids=[kind.name for kind in NETWORKS])


def kind_named(name: str) -> type[Family]:
    return Family.known[name]


@cache
def small(kind: type[Family]) -> Windows:
    probe = probe_of(kind)
    return probe.windows(symbol_rows(num=600, r2=probe.r2))


def quick(kind: type[Family], **changes: Any) -> Family:
    return probe_of(kind).family(kind, **{"epochs": 2, "dropout": 0.2, "trees": 12, "learning_starts": 20} | changes)


def train(
    kind: type[Family],
    seeds: Sequence[int],
    *,
    report: Recorder | None = None,
    checkpoint: Checkpoint | None = None,
    **changes: Any,
) -> Trained:
    asked = replace(probe_of(kind).problem(small(kind)), checkpoint=checkpoint)
    return train_seeds(quick(kind, **changes), asked, seeds, accelerator=OneThread(), report=report or Recorder())


@cache
def ensemble(kind: type[Family]) -> Trained:
    return train(kind, SEEDS)


def equal(first: Trained, second: Trained) -> bool:
    """Whether everything that is published is the same, to the last bit."""
    return (
        {name: value.tobytes() for name, value in first.weights.items()}
        == {name: value.tobytes() for name, value in second.weights.items()}
        and first.graph().SerializeToString() == second.graph().SerializeToString()
        and (dict(first.network), repr(first.findings)) == (dict(second.network), repr(second.findings))
        and (first.outputs, first.warnings) == (second.outputs, second.warnings)
        and (first.epochs_run, first.best_epoch) == (second.epochs_run, second.best_epoch)
    )


@pytest.mark.processor
@every_network
def test_one_graph_gives_the_mean_of_the_members_whatever_is_asked_beside(kind: type[Family], tmp_path: Path) -> None:
    model, windows, family = ensemble(kind), small(kind), quick(kind)
    lengths = [family.min_window, family.lookback]
    graph = export(model, tmp_path, num_features=len(windows.features), lengths=[5], seed=0)
    shares = model.findings["ensemble"]["weights"]
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    for length in lengths:
        rows_NTF = windows.gather(windows.parts["test"][:7], length)
        for positions_N in (None, HELD)[: 1 + (kind.model_type is ModelType.REINFORCEMENT_LEARNING)]:
            members = [each.predict(rows_NTF, positions_N).outputs_NK for each in model.members]
            wanted = sum(share * each.astype(np.float64) for share, each in zip(shares, members, strict=True))
            together = graph.predict(rows_NTF, positions_N)
            np.testing.assert_allclose(model.predict(rows_NTF, positions_N).outputs_NK, wanted, atol=1e-6, rtol=1e-5)
            np.testing.assert_allclose(together.outputs_NK, wanted, atol=1e-5, rtol=1e-5)
            for number in range(7):
                held = None if positions_N is None else positions_N[number : number + 1]
                alone = graph.predict(rows_NTF[number : number + 1], held)
                assert alone.outputs_NK.tobytes() == together.outputs_NK[number : number + 1].tobytes()
                assert alone.last_rows_NF.tobytes() == together.last_rows_NF[number : number + 1].tobytes()
    assert model.graph().opset_import == model.members[0].graph().opset_import


@every_network
def test_each_member_is_what_its_seed_alone_gives(kind: type[Family]) -> None:
    model = ensemble(kind)
    alone = train(kind, [SEEDS[1]])
    assert not alone.members
    assert equal(model.members[1], alone)
    prefix = f"seed{SEEDS[1]}."
    stored = {name.removeprefix(prefix): each for name, each in model.weights.items() if name.startswith(prefix)}
    assert {name: each.tobytes() for name, each in stored.items()} == {
        name: each.tobytes() for name, each in alone.weights.items()
    }
    assert len(model.weights) == len(SEEDS) * len(stored)
    assert model.weights.keys() == {name for seed in SEEDS for name in (f"seed{seed}.{each}" for each in stored)}


@every_network
def test_the_ensemble_says_who_its_members_are(kind: type[Family]) -> None:
    model = ensemble(kind)
    network = json.loads(json.dumps(dict(model.network)))
    assert network["kind"] == "ensemble"
    assert [each["seed"] for each in network["members"]] == list(SEEDS)
    assert {each["kind"] for each in network["members"]} == {model.members[0].network["kind"]}
    assert network["num_outputs"] == len(model.outputs)
    assert model.epochs_run == max(each.epochs_run for each in model.members)
    assert model.best_epoch == model.members[0].best_epoch
    assert model.findings["ensemble"]["best_epoch"] == [each.best_epoch for each in model.members]
    assert model.can_quantize == model.members[0].can_quantize
    assert model.findings.items() >= model.members[0].findings.items()


@every_network
def test_one_seed_is_a_training_as_ever(kind: type[Family]) -> None:
    family, asked = quick(kind), probe_of(kind).problem(small(kind), seed=4)
    plain = family.train(asked, accelerator=OneThread(), report=Recorder())
    assert equal(train(kind, [4]), plain)


@every_network
def test_a_killed_ensemble_repeats_no_finished_member_and_ends_the_same(kind: type[Family], tmp_path: Path) -> None:
    whole, longer = Recorder(), {"epochs": 4, "patience": 4}
    uninterrupted = train(kind, SEEDS[:2], report=whole, **longer)
    checkpoint = Checkpoint(tmp_path, fingerprint={})
    with pytest.raises(JobCancelled):
        train(kind, SEEDS[:2], report=Recorder(cancel_at_check=int(whole.num_checks * 0.75)), checkpoint=checkpoint,
              **longer)  # fmt: skip
    assert (tmp_path / "seed-3" / CHECKPOINT_FILE).exists()
    last, again = Recorder(), Checkpoint(tmp_path, fingerprint={})
    resumed = train(kind, SEEDS[:2], report=last, checkpoint=again, **longer)
    assert equal(resumed, uninterrupted)
    half = whole.steps[-1][1] // 2
    repeated = [step for step, _, _ in last.steps if step <= half]
    assert len(repeated) <= len([step for step, _, _ in whole.steps if step <= half]) / 2
    if kind.name != "isolation_forest":  # which grows its last ten trees again
        assert not repeated
    again.clear()
    assert not list(tmp_path.rglob(CHECKPOINT_FILE))


def test_a_checkpoint_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    kind = kind_named("linear")
    checkpoint = Checkpoint(tmp_path, fingerprint={})
    train(kind, [3, 8], checkpoint=checkpoint)
    (tmp_path / "seed-3").rename(tmp_path / "seed-4")
    resumed = train(kind, [4, 8], checkpoint=Checkpoint(tmp_path, fingerprint={}))
    assert equal(resumed, train(kind, [4, 8]))


def test_progress_runs_once_through_all_members() -> None:
    report = Recorder()
    train(kind_named("linear"), SEEDS, report=report)
    assert [(step, total) for step, total, _ in report.steps] == [(step, 6) for step in range(1, 7)]
    assert report.messages == [f"training seed {seed}, {n} of 3" for n, seed in enumerate(SEEDS, 1)]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_cancellation_ends_whichever_member_is_at_it(share: float) -> None:
    whole = Recorder()
    train(kind_named("gru"), SEEDS, report=whole)
    report = Recorder(cancel_at_check=int(whole.num_checks * share))
    with pytest.raises(JobCancelled):
        train(kind_named("gru"), SEEDS, report=report)
    assert report.num_checks == int(whole.num_checks * share)


def test_the_mean_of_quantiles_that_do_not_cross_does_not_cross() -> None:
    kind, windows = kind_named("linear"), cut(symbol_rows(num=600))
    asked = problem(windows, "price_change_1h", quantiles=(0.05, 0.5, 0.95))
    model = train_seeds(quick(kind), asked, SEEDS, accelerator=OneThread(), report=Recorder())
    outputs_NK = model.predict(windows.gather(windows.parts["test"])).outputs_NK
    assert len(model.outputs) == 3
    assert (np.diff(outputs_NK, axis=1) >= 0).all()
    assert not np.array_equal(outputs_NK, model.members[0].predict(windows.gather(windows.parts["test"])).outputs_NK)


def test_lists_of_features_have_no_mean_and_several_seeds_are_refused() -> None:
    (kind,) = families_of(ModelType.FEATURE_ENGINEERING)
    asked = probe_of(kind).problem(small(kind))
    with pytest.raises(DataValidationError, match="send one seed") as caught:
        train_seeds(quick(kind), asked, [1, 2], accelerator=OneThread(), report=Recorder())
    assert caught.value.details["errors"][0]["path"] == "body.seeds"
    alone = train_seeds(quick(kind), asked, [1], accelerator=OneThread(), report=Recorder())
    assert alone.findings["selection"].chosen


def policy(values: Sequence[float]) -> Trained:
    """A policy that values its actions alike everywhere."""

    def predict(rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        return RawPrediction(np.tile(np.array(values, dtype=np.float32), (len(rows_NTF), 1)), rows_NTF[:, -1])

    network = {"kind": "fixed", "num_features": 3, "num_outputs": 3}
    return Trained(("q_short", "q_flat", "q_long"), {}, network, lambda: None, predict, 1, 1)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [1 / 3, 1 / 3, 1 / 3]),
        ([[0, 0, 1], [100, 0, 0], [0, 1, 0]], [100 / 201, 1 / 201, 100 / 201]),
        ([[5, 5, 6], [5, 5, 5.01], [7, 8, 7]], [1 / 3, 1 / 3, 1 / 3]),
        ([[0, 0, 1], [0, 0, 0], [0, 0, 0]], [0, 1 / 2, 1 / 2]),
        ([[4, 4, 4], [0, 0, 0], [0, 0, 0]], [1 / 3, 1 / 3, 1 / 3]),
    ],
    ids=["alike", "one has run away", "one is quiet", "most see no difference", "none sees any"],
)
def test_no_policy_speaks_louder_than_the_middle_one(values: list[list[float]], wanted: list[float]) -> None:
    weights_M = action_weights([policy(each) for each in values], small(kind_named("q_learning")))
    np.testing.assert_allclose(weights_M, wanted, rtol=1e-4, atol=1e-6)


def test_policies_that_disagree_are_outvoted_whatever_their_scale() -> None:
    members = [policy([0, 0, 1]), policy([0, 0, 2]), policy([1000, 0, 0])]
    weights_M = action_weights(members, small(kind_named("q_learning")))
    joint = combine(members, [1, 2, 3], weights_M=weights_M)
    assert joint.predict(np.zeros((1, 8, 3), dtype=np.float32)).outputs_NK.argmax() == 2


def test_the_spread_is_over_members_judged_alone() -> None:
    figures = {
        3: {"mse": 1.0, "skill": 0.1, "ratio": None},
        8: {"mse": 2.0, "skill": 0.4},
        5: {"mse": 6.0, "skill": 0.1},
    }
    model = ensemble(kind_named("linear"))
    own = dict(zip(map(id, model.members), SEEDS, strict=True))
    spread = seed_spread(model, lambda member: {"ratio": 1.0} | figures[own[id(member)]])
    assert spread is not None
    assert set(spread) == {"mse", "skill"}
    assert spread["mse"].mean == 3.0
    assert spread["mse"].std == pytest.approx(np.sqrt(7))
    assert (spread["mse"].minimum, spread["mse"].maximum) == (1.0, 6.0)
    assert seed_spread(model.members[0], lambda member: {"mse": 1.0}) is None
