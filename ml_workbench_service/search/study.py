"""Sampler and pruner: `Search`, an optuna study that lives in memory and is made anew from the trials' own log.

The log is the only truth on disk. Optuna's own journal is a second one, which after a kill may disagree with the first
and which no reader can read any more once a torn line stands in its middle. What a sampler draws depends on the seed,
the trial's number and the trials before it alone, so a search that was killed goes on with the trials it would have
made; run one after the other they are the same each time. Only training processes import this module.

Bergstra and others, "Algorithms for hyper-parameter optimization", NeurIPS 2011 (tpe); Li and others, "Hyperband", JMLR
18 (2018); Golovin and others, "Google Vizier", KDD 2017 (median); Hutter and others, "An efficient approach for
assessing hyperparameter importance", ICML 2014 (importance).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from ml_workbench_service.contracts.experiments import PrunerName, SamplerName, TrialRecord
from ml_workbench_service.search.space import Dimension, choice_label, grid_points

RANDOM_FIRST = 10
"""Trials that TPE draws at random before it trusts its own picture; Bergstra's 20 would leave short searches none."""
MEDIAN_FIRST = 5
"""Trials that the median pruner lets finish; optuna's default."""
WARM_UP = 3
"""Steps within which nothing is pruned: the first epochs of every network look alike."""
STUDY = "search"
"""Hyperband draws a trial's bracket from the study's name and the trial's number."""

optuna.logging.disable_default_handler()
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Proposal:
    """A trial to be made: its number, counted from 0, and its parameters."""

    number: int
    params: dict[str, Any]


@dataclass(frozen=True)
class SearchStrategy:
    """Sampler and pruner of a search, and how many trials they get.

    Attributes:
        num_trials: of all lives of the search together.
        sampler: tpe, random or grid.
        pruner: none, median or hyperband.
        seed: of the sampler.
        most_steps: most steps that a trial reports, for hyperband.
        num_parallel: trials at a time; with several, a sampler counts on those under way being bad.
    """

    num_trials: int
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "none"
    seed: int = 0
    most_steps: int = 100
    num_parallel: int = 1


class Search:
    """Which settings to try next, which to give up, and which were best.

    Args:
        dimensions: what is varied.
        strategy: how.
        before: what a killed predecessor logged. Finished trials stay; one that was running is made again, once, with
            the same parameters.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], strategy: SearchStrategy, *, before: Iterable[TrialRecord] = ()
    ) -> None:
        self.strategy = strategy
        self._by_name = {each.name: each for each in dimensions}
        self._distributions = {each.name: _distribution(each) for each in dimensions}
        self._study = optuna.create_study(
            study_name=STUDY, direction="maximize", pruner=_pruner(strategy), sampler=self._sampler_for(0)
        )
        self._grid = _shuffled(grid_points(dimensions), strategy.seed) if strategy.sampler == "grid" else []
        self._running: dict[int, optuna.Trial] = {}
        self._again: list[optuna.Trial] = []
        self.finished: dict[int, TrialRecord] = {}
        self._remember({each.number: each for each in before})

    @property
    def num_running(self) -> int:
        """Trials under way."""
        return len(self._running)

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the largest value, the first among equals; without one, the best of the pruned."""
        complete = [each for each in self.finished.values() if each.state == "complete"]
        pruned = [each for each in self.finished.values() if each.state == "pruned" and each.curve]
        if complete:
            return max(complete, key=lambda each: (_value(each), -each.number))
        return max(pruned, key=lambda each: (each.curve[-1][1], -each.number), default=None)

    def next(self) -> Proposal | None:
        """The next trial; None where all have been made or are under way."""
        trial = self._again.pop(0) if self._again else self._asked()
        if trial is None:
            return None
        self._running[trial.number] = trial
        return Proposal(trial.number, self._decoded(trial.params))

    def heard(self, number: int, step: int, value: float) -> bool:
        """Takes an intermediate score, more is better; whether the trial is to be given up."""
        trial = self._running[number]
        trial.report(value, step)
        return bool(trial.should_prune())

    def ended(self, record: TrialRecord) -> None:
        """What came of a trial."""
        trial = self._running.pop(record.number)
        self.finished[record.number] = record
        state = _STATES[record.state]
        self._study.tell(trial, record.value if state is TrialState.COMPLETE else None, state=state)

    def importance(self) -> dict[str, float]:
        """Each dimension's share of the score's variance over the complete trials, by fANOVA, the largest first.

        Empty under four complete trials, and where the scores do not differ.
        """
        scores = [_value(each) for each in self.finished.values() if each.state == "complete"]
        if len(scores) < 4 or max(scores) == min(scores):
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.strategy.seed)
        shares = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: round(float(share), 6) for name, share in shares.items() if np.isfinite(share)}

    def _asked(self) -> optuna.Trial | None:
        """A new trial, while there are some to make."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self.strategy.num_trials:
            return None
        if self.strategy.sampler == "grid":
            return self._given(self._unvisited())
        self._study.sampler = self._sampler_for(number)
        return self._study.ask(self._distributions)

    def _given(self, params: Mapping[str, Any]) -> optuna.Trial:
        """A new trial of these parameters."""
        self._study.enqueue_trial(self._encoded(params))
        return self._study.ask({name: self._distributions[name] for name in params})

    def _remember(self, before: Mapping[int, TrialRecord]) -> None:
        """Tells the study everything again, in the order of the numbers, so that optuna's numbers are ours.

        Hyperband keeps notes of its own with each trial; they come about by asking it again.
        """
        for number in range(max(before, default=-1) + 1):
            record = before.get(number)
            trial = self._given({} if record is None else record.params)
            if record is None:  # its lines were torn
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if not record.is_finished:
                self._again.append(trial)
                continue
            self._running[number] = trial
            for step, value in record.curve:
                self.heard(number, step, value)
            self.ended(record)

    def _unvisited(self) -> dict[str, Any]:
        trials = self._study.get_trials(deepcopy=False)
        taken = {_key(self._decoded(each.params)) for each in trials if each.params}
        return next(point for point in self._grid if _key(point) not in taken)

    def _sampler_for(self, number: int) -> optuna.samplers.BaseSampler:
        """A fresh one for each trial: nothing it draws depends on what an earlier life of the search has drawn."""
        (seed,) = np.random.SeedSequence([self.strategy.seed, number]).generate_state(1).tolist()
        if self.strategy.sampler == "tpe":
            is_parallel = self.strategy.num_parallel > 1
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=RANDOM_FIRST, constant_liar=is_parallel, multivariate=True
            )
        return optuna.samplers.RandomSampler(seed=seed)

    def _encoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Choices by their labels: optuna takes no lists."""
        return {name: choice_label(value) if self._is_choice(name) else value
                for name, value in params.items()}  # fmt: skip

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        decoded = {}
        for name, each in self._by_name.items():
            if name in params:
                decoded[name] = (
                    next(choice for choice in each.choices if choice_label(choice) == params[name])
                    if self._is_choice(name)
                    else each.number(params[name])
                )
        return decoded

    def _is_choice(self, name: str) -> bool:
        return isinstance(self._distributions[name], optuna.distributions.CategoricalDistribution)


_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def _distribution(each: Dimension) -> optuna.distributions.BaseDistribution:
    if each.kind == "choice":
        return optuna.distributions.CategoricalDistribution([choice_label(choice) for choice in each.choices])
    if each.kind == "int":
        return optuna.distributions.IntDistribution(
            round(each.low), round(each.high), log=each.is_log, step=round(each.step or 1)
        )
    return optuna.distributions.FloatDistribution(each.low, each.high, log=each.is_log, step=each.step)


def _pruner(strategy: SearchStrategy) -> optuna.pruners.BasePruner:
    most_steps = strategy.most_steps
    if strategy.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=MEDIAN_FIRST, n_warmup_steps=WARM_UP)
    if strategy.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=min(WARM_UP, most_steps), max_resource=most_steps, reduction_factor=3
        )
    return optuna.pruners.NopPruner()


def _shuffled(points: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """In an order that tells something early about every dimension."""
    return [points[place] for place in np.random.default_rng(seed).permutation(len(points))]


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in params.items()))


def _value(record: TrialRecord) -> float:
    assert record.value is not None, "a complete trial has a value"
    return record.value
