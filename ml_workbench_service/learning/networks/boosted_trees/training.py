"""Gradient-boosted trees: LightGBM on the columns of a window, stopped early, resumed to the bit, one graph.

One booster for each target and quantile; of classes one, with a tree a class in every round. Labels are in units of
each symbol's typical move. What is kept are the rounds with the least loss on the validation part; where none is better
than a constant, the constant: the mean, the quantile or the classes' frequencies of the training part.

**Same bits.** Histograms are filled column by column, so that a sum has one order whatever the number of threads, which
may then follow the clock (`ThreadTuner`). LightGBM's generators of rows and columns remember all rounds before, which a
booster read back from its text does not; so each round begins with seeds of its own, made of the training's seed, the
booster's and the round's number. LightGBM takes a new bagging seed only where the fraction changes too: it changes by a
billionth.

**Weights** are the boosters' texts, as bytes: `lightgbm.Booster(model_str=...)` reads them, and so does
`graph.py`. The section of parameters is left out; it holds the last round's seeds.

**Class weights** enter as weights of rows, which shift logits by log w; the outputs are without it, as
`calibration/class_probabilities.py` wants them. Sample weights multiply them and shift nothing: they say how much a row
counts, not what its class does. A class that the training part lacks keeps the logit of its frequency.

Legend: N windows, D columns, K outputs, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common_lib.exceptions import TrainingError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights, class_counts, class_weights
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.loop import ThreadTuner
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.networks.boosted_trees.graph import (
    WindowColumns,
    columns_graph,
    parse,
    trees_graph,
)
from ml_workbench_service.learning.networks.boosted_trees.hyperparameters import BoostedTreesHyperparameters
from ml_workbench_service.learning.networks.graph_session import GraphSession
from ml_workbench_service.learning.networks.onnx_builder import Graph

ROUNDS_A_STEP = 10
"""Between two lines of progress, and between two looks at the checkpoint: a text costs as much as a round."""
BAGGING_STEP = 1e-9
RISES_WITH_THE_NEWEST = {"lag0", "last", "mean", "slope"}
SIGNS = {"rising": 1, "falling": -1}
RAREST = 1e-15
"""LightGBM's own floor of a frequency."""


@dataclass(frozen=True)
class Goal:
    """What one booster learns.

    Attributes:
        objective: LightGBM's parameters for it.
        labels: of the training and the validation part.
        weights: of the same rows; None: each counts 1.
        constants: what it says of everything where no round is better: one value, or one a class.
        baseline: their loss on the validation part.
    """

    objective: Mapping[str, Any]
    labels: tuple[Floats32, Floats32]
    weights: tuple[Floats, Floats] | None
    constants: Floats
    baseline: float


@dataclass(frozen=True)
class Outputs:
    """From the boosters' sums to the outputs, in numpy and as nodes.

    Attributes:
        names: of the outputs.
        num_quantiles: of each target, which are put in order; 1: point forecasts or classes.
        keep_C, shift_C: of classes, what the sums are multiplied by, 0 or 1, and what is added; None of forecasts.
    """

    names: tuple[str, ...]
    num_quantiles: int = 1
    keep_C: Floats32 | None = None
    shift_C: Floats32 | None = None

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """What the bundle keeps."""
        named = {"keep": self.keep_C, "shift": self.shift_C}
        return {name: value for name, value in named.items() if value is not None}

    def finish(self, sums_NK: Floats32) -> Floats32:
        """Outputs (N, K)."""
        if self.keep_C is not None and self.shift_C is not None:
            return sums_NK * self.keep_C + self.shift_C
        return np.sort(sums_NK.reshape(len(sums_NK), -1, self.num_quantiles), axis=2).reshape(sums_NK.shape)

    def add_to(self, graph: Graph, sums: str) -> None:
        """The same as nodes."""
        if self.keep_C is not None and self.shift_C is not None:
            graph.add("Mul", [sums, graph.constant("class_keep", self.keep_C)], ["kept"])
            graph.add("Add", ["kept", graph.constant("class_shift", self.shift_C)], ["outputs"])
        elif self.num_quantiles > 1:
            shape = graph.constant(
                "by_target", np.array([-1, len(self.names) // self.num_quantiles, self.num_quantiles])
            )
            graph.add("Reshape", [sums, shape], ["quantiles"])
            number = graph.constant("num_quantiles", np.array([self.num_quantiles]))
            graph.add("TopK", ["quantiles", number], ["in_order", "old_places"], axis=2, largest=0, sorted=1)
            graph.add("Flatten", ["in_order"], ["outputs"])
        else:
            graph.add("Identity", [sums], ["outputs"])


@dataclass
class State:
    """Where a training stands between two rounds.

    Attributes:
        texts, rounds, best: of the boosters that are finished.
        text: the booster at hand, all its rounds; None before the first.
        round: how many it has.
        best_round, best_loss: the one to keep, and its loss; 0: the constants.
    """

    texts: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    text: str | None = None
    round: int = 0
    best_round: int = 0
    best_loss: float = 0.0

    def save(self, checkpoint: Checkpoint) -> None:
        """Everything; the generators begin anew in each round."""
        arrays = {f"booster{place}": _bytes(text) for place, text in enumerate(self.texts)}
        if self.text is not None:
            arrays["at_hand"] = _bytes(self.text)
        numbers = {name: getattr(self, name) for name in ("rounds", "best", "round", "best_round", "best_loss")}
        checkpoint.save(arrays, numbers)

    @classmethod
    def restore(cls, checkpoint: Checkpoint) -> "State | None":
        """What a checkpoint holds; None where there is none."""
        saved = checkpoint.load()
        if saved is None:
            return None
        arrays, numbers = saved
        texts = [_text(arrays[f"booster{place}"]) for place in range(len(numbers["rounds"]))]
        return cls(texts=texts, text=_text(arrays["at_hand"]) if "at_hand" in arrays else None, **numbers)


def train_boosted_trees(
    problem: TrainingProblem, hyperparameters: BoostedTreesHyperparameters, *, accelerator: Accelerator, report: Report
) -> Trained:
    """Grows, keeps the best rounds and describes; the network's own answers are LightGBM's."""
    windows = problem.windows
    layout = WindowColumns(
        windows.features, tuple(windows.scaler.is_level_F), windows.lookback, hyperparameters.columns
    )
    derive = GraphSession(columns_graph(layout))
    matrices = tuple(derived(derive, windows, ends, report=report) for ends in _learnt_from(windows))
    goals, outputs = goals_of(problem, hyperparameters.class_weighting)
    boosting = Boosting(hyperparameters, layout, problem, accelerator=accelerator, report=report)
    state = boosting.run(goals, matrices)
    texts, num_raw = tuple(state.texts), len(outputs.names)
    boosters = _Boosters(texts)
    return Trained(
        outputs=outputs.names,
        weights={f"booster{place}": _bytes(text) for place, text in enumerate(texts)} | outputs.weights,
        network={
            "kind": "boosted_trees",
            "columns": hyperparameters.columns,
            "lookback": windows.lookback,
            "boosters": len(texts),
            "rounds": state.best,
            "num_quantiles": outputs.num_quantiles,
            "num_features": len(windows.features),
            "num_outputs": num_raw,
        },
        graph=lambda: trees_graph(layout, texts, finish=outputs.add_to, num_raw=num_raw, num_outputs=num_raw),
        predict=lambda rows_NTF, positions_N=None: _answer(boosters, derive, outputs, rows_NTF),
        epochs_run=max(state.rounds),
        best_epoch=state.best[0],
        can_quantize=False,  # trees have no matrices to quantise
    )


def _learnt_from(windows: Windows) -> tuple[Ints, Ints]:
    return windows.parts["train"], windows.parts["validation"]


def derived(derive: GraphSession, windows: Windows, ends: Ints, *, report: Report) -> Floats32:
    """What the trees read of these windows (N, D)."""
    matrix_ND: Floats32 | None = None
    begin = 0
    for batch in windows.batches(ends):
        report.check()
        found_ND, _ = derive(windows.gather(batch))
        if matrix_ND is None:
            matrix_ND = np.empty((len(ends), found_ND.shape[1]), np.float32)
        matrix_ND[begin : begin + len(batch)] = found_ND
        begin += len(batch)
    assert matrix_ND is not None, "no part is empty"
    return matrix_ND


def goals_of(problem: TrainingProblem, weighting: ClassWeights) -> tuple[list[Goal], Outputs]:
    """One booster for each target and quantile, or one for all classes."""
    from ml_workbench_service.learning.networks.heads import quantile_names

    windows, targets, quantiles = problem.windows, problem.targets, problem.quantiles
    if targets[0].classes:
        return _class_goal(problem, weighting)
    names = [target.name for target in targets]
    goals = []
    for place in range(len(names)):
        train_N, validation_N = (windows.labels_RK[ends, place] for ends in _learnt_from(windows))
        for quantile in quantiles or (None,):
            goals.append(_forecast_goal(train_N, validation_N, quantile, _sample_weights(windows)))
    if not quantiles:
        return goals, Outputs(tuple(names))
    return goals, Outputs(quantile_names(names, quantiles), num_quantiles=len(quantiles))


def _sample_weights(windows: Windows) -> tuple[Floats, Floats] | None:
    """What the rows of the training and the validation part count; None: each as much as any other."""
    weights_R = windows.weights_R
    if weights_R is None:
        return None
    train_N, validation_N = (weights_R[ends].astype(np.float64) for ends in _learnt_from(windows))
    return train_N, validation_N


def _forecast_goal(
    train_N: Floats32, validation_N: Floats32, quantile: float | None, weights: tuple[Floats, Floats] | None
) -> Goal:
    above_N, counts = validation_N.astype(np.float64), weights or (None, None)
    if quantile is None:
        constant = float(train_N.mean(dtype=np.float64) if weights is None else np.average(train_N, weights=counts[0]))
        objective: dict[str, Any] = {"objective": "regression", "metric": "l2"}
        losses_N = (above_N - constant) ** 2
    else:
        constant = _quantile(train_N.astype(np.float64), quantile, counts[0])
        objective = {"objective": "quantile", "metric": "quantile", "alpha": quantile}
        above_N = above_N - constant
        losses_N = np.maximum(quantile * above_N, (quantile - 1) * above_N)
    baseline = float(np.average(losses_N, weights=counts[1]))
    return Goal(objective, (train_N, validation_N), weights, np.array([constant]), baseline)


def _quantile(values_N: Floats, level: float, weights_N: Floats | None) -> float:
    """Of weighted values the least that has this share of the weight at or below it."""
    if weights_N is None:
        return float(np.quantile(values_N, level))
    return float(np.quantile(values_N, level, weights=weights_N, method="inverted_cdf"))


def _class_goal(problem: TrainingProblem, weighting: ClassWeights) -> tuple[list[Goal], Outputs]:
    classes, windows = problem.targets[0].classes, problem.windows
    train_N, validation_N = (windows.own_labels_RK[ends, 0].astype(np.int64) for ends in _learnt_from(windows))
    counts_C = class_counts(train_N, len(classes))
    weights_C = class_weights(counts_C, weighting)
    own = _sample_weights(windows)
    weighed_C = counts_C if own is None else np.bincount(train_N, weights=own[0], minlength=len(classes))
    constants_C = np.log(np.maximum(weighed_C * weights_C / len(train_N), RAREST))
    weights = (weights_C[train_N], weights_C[validation_N])
    if own is not None:
        weights = (weights[0] * own[0], weights[1] * own[1])
    validation_weights_N = weights[1]
    baseline = float(-(constants_C[validation_N] * validation_weights_N).sum() / validation_weights_N.sum())
    occurs_C = counts_C > 0
    shift_C = np.where(occurs_C, -np.log(weights_C), np.log(class_frequencies(train_N, len(classes))))
    goal = Goal(
        {"objective": "multiclass", "metric": "multi_logloss", "num_class": len(classes)},
        (train_N.astype(np.float32), validation_N.astype(np.float32)),
        None if weighting == "none" and own is None else weights,
        constants_C,
        baseline,
    )
    return [goal], Outputs(tuple(classes), keep_C=occurs_C.astype(np.float32), shift_C=shift_C.astype(np.float32))


class Boosting:
    """The boosters of one training, one after the other.

    Args:
        hyperparameters: the family's.
        layout: names the columns.
        problem: seed, checkpoint and directions.
        accelerator: says how many threads there are.
        report: hears of every tenth round, and is looked at in each.
    """

    def __init__(
        self,
        hyperparameters: BoostedTreesHyperparameters,
        layout: WindowColumns,
        problem: TrainingProblem,
        *,
        accelerator: Accelerator,
        report: Report,
    ) -> None:
        import torch

        accelerator.for_training()
        self._hyper, self._layout, self._seed = hyperparameters, layout, problem.seed
        self._report, self._checkpoint = report, problem.checkpoint
        self._threads, self._most_threads = 1, torch.get_num_threads()
        self._tuner = ThreadTuner(self._most_threads, use=self._use_threads)
        self._state = State()
        self._num_goals = 0

    def run(self, goals: Sequence[Goal], matrices: Sequence[Floats32]) -> State:
        """All of them, or those that a checkpoint does not have.

        Raises:
            TrainingError: a loss is no longer a number.
            JobCancelled: somebody asked for it, within one round.
        """
        self._num_goals = len(goals)
        restored = None if self._checkpoint is None else State.restore(self._checkpoint)
        if restored is not None:
            self._state = restored
            self._report.say(f"going on after round {restored.round} of booster {len(restored.texts) + 1}")
        while len(self._state.texts) < len(goals):
            self._grow(goals[len(self._state.texts)], matrices)
        return self._state

    def _grow(self, goal: Goal, matrices: Sequence[Floats32]) -> None:
        import lightgbm

        state, params = self._state, self._params(goal)
        if state.text is None:
            state.best_loss = goal.baseline
        weights = goal.weights or (None, None)
        train = lightgbm.Dataset(
            matrices[0],
            goal.labels[0],
            weight=weights[0],
            feature_name=list(self._layout.names),
            params={**params, "num_threads": self._most_threads},
            free_raw_data=False,  # a booster that goes on asks its first rounds about them
        )
        train.construct()
        varies = any(train.feature_num_bin(place) > 1 for place in range(len(self._layout.kinds)))
        booster = lightgbm.train(
            params,
            train,
            self._hyper.num_iterations - state.round if varies else 1,
            valid_sets=[train.create_valid(matrices[1], goal.labels[1], weight=weights[1])],
            init_model=None if state.text is None else lightgbm.Booster(model_str=state.text),
            keep_training_booster=True,
            # without a column to split by, LightGBM refuses new seeds
            callbacks=[self._before(params), self._after(goal)] if varies else [],
        )
        if not varies:
            state.round = 1
            self._step(goal, None, loss=goal.baseline)
        text = _without_parameters(booster.model_to_string(num_iteration=max(state.best_round, 1)))
        state.texts.append(text if state.best_round else _constant(text, goal.constants))
        state.rounds.append(state.round)
        state.best.append(state.best_round)
        state.text, state.round, state.best_round = None, 0, 0
        if self._checkpoint is not None and self._checkpoint.due():
            state.save(self._checkpoint)

    def _params(self, goal: Goal) -> dict[str, Any]:
        hyper, layout = self._hyper, self._layout
        directions = [
            SIGNS.get(hyper.monotone_directions.get(layout.features[place], ""), 0) * (kind in RISES_WITH_THE_NEWEST)
            for kind, place in zip(layout.kinds, layout.feature_of, strict=True)
        ]
        return {
            **goal.objective,
            "learning_rate": hyper.learning_rate,
            "num_leaves": hyper.num_leaves,
            "min_data_in_leaf": hyper.min_data_in_leaf,
            "bagging_fraction": hyper.bagging_fraction,
            "bagging_freq": int(hyper.bagging_fraction < 1),
            "feature_fraction": hyper.feature_fraction,
            "lambda_l2": hyper.lambda_l2,
            "seed": int(np.random.SeedSequence([self._seed]).generate_state(1)[0] >> 1),
            "deterministic": True,
            "force_col_wise": True,
            "use_missing": False,  # windows hold no gaps
            "num_threads": self._threads,
            "verbosity": -1,
        } | ({"monotone_constraints": directions} if any(directions) else {})

    def _before(self, params: Mapping[str, Any]) -> Callable[[Any], None]:
        """Of each round: a look for a cancellation, the number of threads, and seeds of its own."""

        def begin(env: Any) -> None:
            self._report.check()
            self._tuner.next_batch()
            words = np.random.SeedSequence([self._seed, len(self._state.texts), env.iteration]).generate_state(2) >> 1
            drawn: dict[str, Any] = {"num_threads": self._threads, "feature_fraction_seed": int(words[0])}
            if params["bagging_freq"]:
                drawn["bagging_seed"] = int(words[1])
                drawn["bagging_fraction"] = params["bagging_fraction"] - BAGGING_STEP * (1 + env.iteration % 2)
            env.model.reset_parameter(drawn)

        begin.before_iteration = True  # type: ignore[attr-defined]
        return begin

    def _after(self, goal: Goal) -> Callable[[Any], None]:
        """Of each round: its loss, the progress, the checkpoint, and whether it was the last."""
        from lightgbm.callback import EarlyStopException

        state, hyper = self._state, self._hyper

        def end(env: Any) -> None:
            loss = float(env.evaluation_result_list[0][2])
            if not loss < float("inf"):
                raise TrainingError(
                    f"the loss of round {env.iteration + 1} is not a number; "
                    "lower `learning_rate` or look for absurd values among the features"
                )
            state.round = env.iteration + 1
            if loss < state.best_loss:
                state.best_round, state.best_loss = state.round, loss
            stops = state.round - state.best_round >= hyper.early_stopping_rounds
            is_last = stops or state.round == hyper.num_iterations
            if is_last or state.round % ROUNDS_A_STEP == 0:
                self._step(goal, None if is_last else env.model, loss=loss)
            if stops:
                raise EarlyStopException(state.best_round, env.evaluation_result_list)

        return end

    def _step(self, goal: Goal, booster: Any | None, *, loss: float) -> None:
        """Tells the progress, and saves a booster that has rounds to come: one without any could not go on."""
        state, total, checkpoint = self._state, self._hyper.num_iterations, self._checkpoint
        if booster is not None and state.round % ROUNDS_A_STEP == 0 and checkpoint is not None and checkpoint.due():
            state.text = _without_parameters(booster.model_to_string(num_iteration=-1))
            state.save(checkpoint)
        self._report(
            len(state.texts) * total + state.round,
            self._num_goals * total,
            stop_loss=loss,
            stop_skill=1 - loss / goal.baseline if goal.baseline else 0.0,
        )

    def _use_threads(self, num: int) -> None:
        self._threads = num


class _Boosters:
    """LightGBM's own sums, read from the texts when first asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._loaded: list[Any] = []

    def __call__(self, matrix_ND: Floats32) -> Floats32:
        import lightgbm

        if not self._loaded:
            self._loaded = [lightgbm.Booster(model_str=text) for text in self._texts]
        sums = [each.predict(matrix_ND, raw_score=True, num_threads=1) for each in self._loaded]
        return np.column_stack(sums).astype(np.float32)


def _answer(boosters: _Boosters, derive: GraphSession, outputs: Outputs, rows_NTF: Floats32) -> RawPrediction:
    matrix_ND, last_rows_NF = derive(rows_NTF)
    return RawPrediction(outputs.finish(boosters(matrix_ND)), last_rows_NF)


def _constant(text: str, constants: Floats) -> str:
    """The first round's trees, one a constant, with that value in every leaf."""
    import lightgbm

    booster = lightgbm.Booster(model_str=text)
    for number, (tree, value) in enumerate(zip(parse(text), constants.tolist(), strict=True)):
        for leaf in range(len(tree.leaf_value)):
            booster.set_leaf_output(number, leaf, value)
    return _without_parameters(booster.model_to_string())


def _without_parameters(text: str) -> str:
    return str(text.partition("\nparameters:")[0])


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _text(array: np.ndarray) -> str:
    return array.tobytes().decode()
