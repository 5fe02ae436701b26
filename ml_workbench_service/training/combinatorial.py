"""Combinatorial purged cross-validation: every choice of stretches of time is left out once and judged.

One split answers with one number. Here the time before the test border is cut into N equal groups; for each choice of k
of them one training learns from the others and is judged on the k. Every group is so answered by C(N-1, k-1) trainings,
and laying one answer of each group end to end makes as many paths through the whole time, φ = C(N, k) · k / N of them
(López de Prado, "Advances in financial machine learning", 2018, chapter 12). How far the paths lie apart is how much of
a figure is the luck of the split.

    groups        1      2      3      4      5      6          one of the 15 trainings of 2 in 6, groups 2 and 5 tested
                train | test | train | train | test | stop+calibrate

The last group that is not tested stops the training early and calibrates, half of it each. Labels are purged wherever
two parts meet, on both sides; windows that come after a test hold no bar of it, and `embargo` bars more are left out
(`learning/data/splits.py`). What is fitted (scaling, regimes, seasonal profiles, baselines) learns from training bars
alone. One seed, the request's first, trains each combination. A test ends flat and begins flat, and pays for both.

When it fails: trainings know what came **after** their tests, so that this is no history of what would have been
earned, and a feature with a long memory carries tested bars into the training; that is what `embargo` is for. Paths
share most of their data and are no independent proofs. No verdict is made of them; `walk_forward` answers the other
question.

Legend: N groups, k of them tested, P paths.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations, groupby

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.evaluation import CombinatorialReport, Spread, ValidationGroup, ValidationPath
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import FeatureKind
from ml_workbench_service.contracts.training import CrossValidation
from ml_workbench_service.evaluation.signal_backtest import daily_net
from ml_workbench_service.learning.calibration.conformal import NoveltyDetector
from ml_workbench_service.learning.data.labelling import Labelling
from ml_workbench_service.learning.data.splits import BEGINNING_MS, PartSpan, ScatteredParts
from ml_workbench_service.learning.data.windows import FEWEST_WINDOWS
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.fitting.progress import PartReport
from ml_workbench_service.learning.interfaces import dataset as training_data
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.learning.interfaces.differentials import Differentials, pooled
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.market import performance
from ml_workbench_service.training.assessment import last_rows
from ml_workbench_service.training.tasks.network_task import NetworkTask, Served, decided_rows, is_judged
from ml_workbench_service.training.walk_forward import until

KindOf = Callable[[str], FeatureKind]
SELECTION_SAW_GROUPS = (
    "A feature set was selected on data that combinations are judged on: their figures flatter its features. Train the "
    "feature set on earlier data, or walk forward over later ones."
)


@dataclass(frozen=True)
class GroupResult:
    """One group as one training that left it out answered it.

    Attributes:
        differentials: the model and each baseline at each moment.
        daily: net log return of each FX day; None where nothing is traded.
    """

    num_test: int
    differentials: tuple[Differentials, ...]
    daily: Mapping[str, float] | None


def combinatorial(
    order: TrainingOrder,
    data: TrainingData,
    *,
    cv: CrossValidation,
    accelerator: Accelerator,
    report: Report,
    kind_of: KindOf,
    checkpoint: Checkpoint | None = None,
) -> CombinatorialReport:
    """Trains and judges every combination; nothing that becomes known after the test border of `data` is read.

    Args:
        order: what is trained.
        data: the whole training's; its windows say where the test part begins.
        cv: how many groups, how many of them tested, and the embargo in bars.
        accelerator: where.
        report: hears which combination is trained, and is asked about cancellations.
        kind_of: what kind a feature is.
        checkpoint: where combinations leave what they need to go on after a kill; None: nowhere.

    Raises:
        DataValidationError: the groups are too short; the message says in which combination, and what to do.
        TrainingError, JobCancelled: as the family's.
    """
    task = order.task
    if not (isinstance(task, NetworkTask) and task.has_verdict and task.learns_apart):
        raise DataValidationError.at(
            "body.cv.scheme", "combinations are judged of forecasts and classes alone; leave `cv` out"
        )
    order, groups = order.filled(data.tables[0].fill), groups_of(data, num_groups=cv.groups)
    chosen = list(combinations(range(cv.groups), cv.test_groups))
    known = labelled_until(order, data, groups[-1].end_ms)
    for tested in chosen:  # before anything is trained
        report.check()
        _fitting(order, known, groups, tested, cv=cv, kind_of=kind_of)
    if order.derivation.selected_until_ms > groups[0].start_ms:
        report.warn(SELECTION_SAW_GROUPS)
    answers: list[list[GroupResult]] = [[] for _ in groups]
    num_train = []
    for number, tested in enumerate(chosen, 1):
        name = f"combination {number} of {len(chosen)}"
        report.say(f"validating, {name}")
        cut = _fitting(order, known, groups, tested, cv=cv, kind_of=kind_of)
        stage = None if checkpoint is None else checkpoint.stage(f"combination-{number}", split=_spelt(cut))
        problem = training_data.problem_for(order, cut, checkpoint=stage)
        trained = order.family.train(problem, accelerator=accelerator, report=PartReport(report, name))
        served = _served(task, trained, problem)
        for place in tested:
            report.check()
            answers[place].append(_judged(task, trained, served, groups[place]))
        if stage is not None:
            stage.finish()
        num_train.append(len(cut.windows.parts["train"]))
        del cut, problem, trained, served  # before the next ones are made
    return _report(order, cv, groups, answers, num_train)


def groups_of(data: TrainingData, *, num_groups: int) -> list[PartSpan]:
    """Equal stretches of the time before the test border, the last of which ends there."""
    first_ms = int(data.windows.available_at_ms_R[data.windows.parts["train"]].min()) - 1
    until_ms = data.windows.borders_ms["test"]
    length = (until_ms - first_ms) // num_groups
    ends = [until_ms - length * left for left in reversed(range(num_groups))]
    return [PartSpan("test", end_ms - length, end_ms) for end_ms in ends]


def split_around(groups: Sequence[PartSpan], tested: Sequence[int], *, embargo_bars: int) -> ScatteredParts:
    """The parts of one combination; groups beside each other that are learnt from are one stretch.

    The first begins with the first bar, so that what is left over by the division is learnt from too.
    """
    stopping = max(place for place in range(len(groups)) if place not in tested)
    middle_ms = (groups[stopping].start_ms + groups[stopping].end_ms) // 2
    parts: list[PartSpan] = []
    for place, (_, start_ms, end_ms) in enumerate(groups):
        if place == stopping:
            parts += [PartSpan("validation", start_ms, middle_ms), PartSpan("calibration", middle_ms, end_ms)]
        else:
            parts.append(PartSpan("test" if place in tested else "train", start_ms, end_ms))
    if parts[0].part == "train":
        parts[0] = parts[0]._replace(start_ms=BEGINNING_MS)
    joined = []
    for part, several in groupby(enumerate(parts), key=lambda each: each[1].part if each[1].part == "train" else each):
        found = [each for _, each in several]
        joined.append(PartSpan("train", found[0].start_ms, found[-1].end_ms) if part == "train" else found[0])
    return ScatteredParts(tuple(joined), embargo_bars)


def labelled_until(order: TrainingOrder, data: TrainingData, end_ms: int) -> Labelling:
    """The bars that are known by then, with labels; what is fitted is fitted by each combination."""
    return training_data.label(order, [until(table, end_ms) for table in data.tables])


def cut_around(order: TrainingOrder, known: Labelling, split: ScatteredParts, *, kind_of: KindOf) -> TrainingData:
    """What a training of this combination is given.

    Raises:
        DataValidationError: a part has too few windows, a symbol no window to learn from.
    """
    labelled = replace(known, regimes={}, profiles={})
    windows = training_data.cut(order, labelled, kind_of=kind_of, split=split)
    for each in split.of("test"):
        num = int(_within(windows.available_at_ms_R[windows.parts["test"]], each).sum())
        if num < FEWEST_WINDOWS["test"]:
            raise DataValidationError.at(
                "body.start_date", f"a group has {num} windows and needs {FEWEST_WINDOWS['test']}"
            )
    return TrainingData(tuple(known.tables), labelled, windows)


def _fitting(
    order: TrainingOrder,
    known: Labelling,
    groups: Sequence[PartSpan],
    tested: Sequence[int],
    *,
    cv: CrossValidation,
    kind_of: KindOf,
) -> TrainingData:
    """`cut_around`, with the field that would help named where the groups are too short."""
    try:
        return cut_around(order, known, split_around(groups, tested, embargo_bars=cv.embargo), kind_of=kind_of)
    except DataValidationError as error:
        names = ", ".join(str(place + 1) for place in tested)
        raise DataValidationError.at(
            "body.cv.groups",
            f"{cv.groups} groups do not fit into these data; send fewer, a shorter `embargo`, or a longer range. With "
            f"the groups {names} left out {error.message}",
            code="too_many_groups",
        ) from error


def _spelt(cut: TrainingData) -> str:
    """The split, for a checkpoint's fingerprint."""
    split = cut.windows.split
    assert isinstance(split, ScatteredParts), "a combination is cut by stretches"
    parts = [f"{each.part} until {each.end_ms}" for each in split.in_time]
    return f"{', '.join(parts)}; embargo {split.embargo_bars}"


def _served(task: NetworkTask, trained: Trained, problem: TrainingProblem) -> Served:
    """Decoder and position rule, fitted on the combination's own calibration part."""
    windows, predict = problem.windows, Predict(trained, None)
    outputs_NK = predict.over(windows, decided_rows(windows, "calibration"))
    judged_NK = outputs_NK[is_judged(windows, "calibration")]
    decoder: Decoder = task.calibrate(trained, judged_NK, windows.parts["calibration"], problem)
    novelty = NoveltyDetector.fit(last_rows(windows, windows.parts["train"]), windows.features)
    served = Served(decoder, novelty, predict, {"calibration": outputs_NK}, problem)
    return replace(served, decoder=task.size(served)[0])


def _judged(task: NetworkTask, trained: Trained, served: Served, group: PartSpan) -> GroupResult:
    """One tested group alone; nothing is held into it, or out of it."""
    windows = served.problem.windows
    ends, asked = (
        rows["test"][_within(windows.available_at_ms_R[rows["test"]], group)]
        for rows in (windows.parts, windows.decisions)
    )
    own = replace(
        windows,
        parts={**windows.parts, "test": ends},
        decisions={**windows.decisions, "test": asked},
    )
    problem = replace(served.problem, windows=own)
    outputs_NK = served.predict.over(own, ends)
    differentials = task.differentials(trained, served.decoder, outputs_NK, ends, problem, predict=served.predict)
    positions_N = None
    if problem.targets[0].is_traded(problem.fill):
        positions_N = task.held(replace(served, problem=problem), served.predict.over(own, asked), asked)
    daily = None if positions_N is None else daily_net(positions_N, asked, problem)
    return GroupResult(len(ends), tuple(differentials), daily)


def _within(moments_N: np.ndarray, stretch: PartSpan) -> np.ndarray:
    return np.asarray((moments_N > stretch.start_ms) & (moments_N <= stretch.end_ms))


def _report(
    order: TrainingOrder,
    cv: CrossValidation,
    groups: Sequence[PartSpan],
    answers: Sequence[Sequence[GroupResult]],
    num_train: Sequence[int],
) -> CombinatorialReport:
    paths = [_path(place + 1, [each[place] for each in answers]) for place in range(cv.num_paths)]
    ratios = [each.sharpe for each in paths]
    nets = [each.net_log_return for each in paths if each.net_log_return is not None]
    return CombinatorialReport(
        groups=tuple(_group(place + 1, *each) for place, each in enumerate(zip(groups, answers, strict=True))),
        test_groups=cv.test_groups,
        num_trainings=cv.num_trainings,
        num_train=(min(num_train), max(num_train)),
        purged_bars=order.horizon,
        embargo_bars=cv.embargo,
        paths=tuple(paths),
        skill={name: found for name in paths[0].skill if (found := _spread([each.skill[name] for each in paths]))},
        sharpe=_spread(ratios),
        share_losing=float(np.mean(np.array(nets) <= 0)) if nets else None,
    )


def _path(number: int, results: Sequence[GroupResult]) -> ValidationPath:
    """One answer of each group, end to end."""
    skill = _skill(pooled([each.differentials for each in results]))
    daily: dict[str, float] = {}
    for each in results:
        for date, value in (each.daily or {}).items():
            daily[date] = daily.get(date, 0.0) + value  # two groups may share the day of their border
    if not daily:
        return ValidationPath(number=number, skill=skill)
    daily_D = np.array([daily[date] for date in sorted(daily)])
    return ValidationPath(
        number=number,
        skill=skill,
        net_log_return=float(daily_D.sum()),
        sharpe=performance.annual(performance.sharpe(daily_D)),
        max_drawdown=performance.max_drawdown(daily_D),
    )


def _group(number: int, group: PartSpan, results: Sequence[GroupResult]) -> ValidationGroup:
    """The mean of its answers."""
    skills = [_skill(each.differentials) for each in results]
    nets = [sum(each.daily.values()) for each in results if each.daily is not None]
    return ValidationGroup(
        number=number,
        start=datetime.fromtimestamp(group.start_ms / 1000, tz=UTC),
        end=datetime.fromtimestamp(group.end_ms / 1000, tz=UTC),
        num_test=results[0].num_test,
        skill={name: _mean([each[name] for each in skills]) for name in skills[0]},
        net_log_return=_mean(nets) if nets else None,
    )


def _skill(differentials: Sequence[Differentials]) -> dict[str, float | None]:
    return {each.baseline: each.comparison().skill for each in differentials}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    """Null where a path has no such figure."""
    known = [each for each in values if each is not None]
    if len(known) < len(values):
        return None
    return Spread(
        mean=float(np.mean(known)),
        std=float(np.std(known, ddof=1)),
        minimum=min(known),
        median=float(np.median(known)),
        maximum=max(known),
    )
