"""Deep ensembles: the same training from several seeds, one answer: the mean of theirs.

What is published and judged is the mean, never the best seed: choosing among seeds by what they earned is one more way
to fit the past (Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using
deep ensembles", NeurIPS 2017). What is averaged is what the network gives:

    forecasts            values in units of the label scale; means of quantiles that do not cross do not cross
    classes              logits: the geometric mean of the members' probabilities; one temperature is fitted to it
    anomaly scores       errors in their own deviations, and a forest's scores in (0, 1]: a mean of forests' scores is,
                         to first order, the score of one forest with all their trees, whose path lengths it averages
    values of actions    a weighted mean; probabilities of actions alike

Values of actions are sums of rewards in one unit, so that their plain mean would be the better estimate (Anschel, Baram
and Shimkin, "Averaged-DQN", ICML 2017), but for the seed whose network has run away: its differences between actions
are many times the others' and would decide alone. So a member counts the less the more its typical difference, on the
training part, exceeds the members' median; what is more quiet stays so, for it has little to say. Weights add up to 1:
values keep their unit, probabilities their sum, and no answer jumps where two actions are nearly equal, as votes would.

When it fails: seeds share their data, so that their mean removes the luck of the beginning and nothing of the sample's.
Serving costs as much as all members.

Legend: N windows, T rows, F features, K outputs, M members.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.evaluation import SeedSpread
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.progress import PartReport
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem
from ml_workbench_service.market.trading_series import POSITIONS

if TYPE_CHECKING:
    from onnx import ModelProto

MOST_WINDOWS = 1000
"""Training windows on which members are asked how much their actions differ."""


def train_seeds(
    family: AnyFamily,
    problem: TrainingProblem,
    seeds: Sequence[int],
    *,
    accelerator: Accelerator,
    report: Report,
) -> Trained:
    """Trains once for each seed; of several, the ensemble. With one seed it is `family.train` and nothing else.

    After a kill the member at hand goes on and finished ones come back from their last checkpoint, to the same bits.

    Args:
        family: what trains.
        problem: data and checkpoint; its seed is not read.
        seeds: one or more, each once.
        accelerator: where.
        report: hears of every step of all members, one after the other.

    Raises:
        DataValidationError: several seeds of a family whose product has no mean.
        TrainingError, JobCancelled: as the family's.
    """
    if len(seeds) == 1:
        return family.train(replace(problem, seed=seeds[0]), accelerator=accelerator, report=report)
    if family.model_type is ModelType.FEATURE_ENGINEERING:
        raise DataValidationError.at("body.seeds", "lists of features have no mean; send one seed")
    members = []
    for number, seed in enumerate(seeds):
        report.say(f"training seed {seed}, {number + 1} of {len(seeds)}")
        stage = None if problem.checkpoint is None else problem.checkpoint.stage(f"seed-{seed}", seed=seed)
        own = replace(problem, seed=seed, checkpoint=stage)
        heard = _MemberReport(report, f"seed {seed}, {number + 1} of {len(seeds)}", number, len(seeds))
        members.append(family.train(own, accelerator=accelerator, report=heard))
        if stage is not None:
            stage.finish()
    weights_M = np.full(len(members), 1 / len(members), dtype=np.float32)
    if family.model_type is ModelType.REINFORCEMENT_LEARNING:
        weights_M = action_weights(members, problem.windows)
    return combine(members, seeds, weights_M=weights_M)


def combine(members: Sequence[Trained], seeds: Sequence[int], *, weights_M: Floats32) -> Trained:
    """One `Trained` out of several of one family: its outputs are the weighted mean, added up in the members' order.

    Args:
        members: two or more, trained on the same windows.
        seeds: of each.
        weights_M: what each counts.
    """
    first = members[0]
    assert all(each.outputs == first.outputs for each in members), "members of one training have the same outputs"
    described = [
        {"seed": seed, "weight": float(weight), **each.network}
        for seed, weight, each in zip(seeds, weights_M, members, strict=True)
    ]
    courses = {
        "seeds": list(seeds),
        "weights": [float(weight) for weight in weights_M],
        "epochs_run": [each.epochs_run for each in members],
        "best_epoch": [each.best_epoch for each in members],
    }

    def graph() -> "ModelProto":
        from ml_workbench_service.learning.fitting.ensemble_graph import mean_graph

        return mean_graph([each.graph() for each in members], weights_M)

    return Trained(
        outputs=first.outputs,
        weights={
            f"seed{seed}.{name}": value
            for seed, each in zip(seeds, members, strict=True)
            for name, value in each.weights.items()
        },
        network={
            "kind": "ensemble",
            "members": described,
            "num_features": first.network["num_features"],
            "num_outputs": first.network["num_outputs"],
        },
        graph=graph,
        predict=lambda rows_NTF, positions_N=None: _answer(members, weights_M, rows_NTF, positions_N),
        epochs_run=max(each.epochs_run for each in members),
        best_epoch=first.best_epoch,
        warnings=tuple(dict.fromkeys(warning for each in members for warning in each.warnings)),
        findings={**first.findings, "ensemble": courses},
        can_quantize=all(each.can_quantize for each in members),
        members=tuple(members),
    )


def action_weights(members: Sequence[Trained], windows: Windows) -> Floats32:
    """(M,) what each policy counts: no more than the middle one does by the differences between its actions."""
    ends = windows.parts["train"]
    rows_NTF = windows.gather(ends[:: -(-len(ends) // MOST_WINDOWS)])
    sizes_M = np.array([_typical_difference(each, rows_NTF) for each in members])
    counts_M = np.minimum(np.median(sizes_M), sizes_M) / np.where(sizes_M > 0, sizes_M, 1.0)
    counts_M[sizes_M == 0] = 1.0
    weights_M: Floats32 = (counts_M / counts_M.sum()).astype(np.float32)
    return weights_M


def seed_spread(
    trained: Trained, judge_member: Callable[[Trained], dict[str, float | None]]
) -> dict[str, SeedSpread] | None:
    """Each figure's mean, standard deviation, least and largest value over the members, each judged alone.

    Args:
        trained: an ensemble; of a single training there is no spread: None.
        judge_member: a member's figures on the test part; one that is None for any member is left out.
    """
    if not trained.members:
        return None
    judged = [judge_member(member) for member in trained.members]
    spread = {}
    for name in judged[0]:
        values = [value for each in judged if (value := each.get(name)) is not None]
        if len(values) == len(judged):
            spread[name] = SeedSpread(
                mean=float(np.mean(values)),
                std=float(np.std(values, ddof=1)),
                minimum=min(values),
                maximum=max(values),
            )
    return spread


class _MemberReport(PartReport):
    """Of one member: its steps follow those of the members before it."""

    def __init__(self, report: Report, name: str, number: int, num_members: int) -> None:
        super().__init__(report, name)
        self._number = number
        self._num_members = num_members

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """A step of all members' steps."""
        self._report(self._number * total + step, self._num_members * total, **metrics)


def _answer(
    members: Sequence[Trained], weights_M: Floats32, rows_NTF: Floats32, positions_N: Floats32 | None
) -> RawPrediction:
    answers = [each.predict(rows_NTF, positions_N) for each in members]
    outputs_NK: Any = answers[0].outputs_NK * weights_M[0]
    for answer, weight in zip(answers[1:], weights_M[1:], strict=True):
        outputs_NK = outputs_NK + answer.outputs_NK * weight
    return RawPrediction(outputs_NK, answers[0].last_rows_NF)


def _typical_difference(member: Trained, rows_NTF: Floats32) -> float:
    """Root mean square of what an action's value is above or below the mean of the three, at each position held."""
    values_NK = np.concatenate(
        [
            member.predict(rows_NTF, np.full(len(rows_NTF), position, dtype=np.float32)).outputs_NK
            for position in POSITIONS
        ]
    ).astype(np.float64)
    return float(np.sqrt(np.mean((values_NK - values_NK.mean(axis=1, keepdims=True)) ** 2)))
