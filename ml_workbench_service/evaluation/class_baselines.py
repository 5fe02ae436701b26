"""Baseline classifiers: what somebody without the model would have said of the next class.

    majority_class           the training part's frequencies
    persistence              regimes: the present one, with the training part's frequencies of leaving it
    present_statistics       regimes: the frequencies that each symbol's training part had where the rule's own
                             statistics, trend and volatility, stood as now. Near a threshold the present class is about
                             to change, which everybody knows who knows the rule
    undirected               directions and barriers: the model's own probability that nothing happens, the rest split
                             between the sides as the training part was. Volatility can be foretold better than by
                             deciles, by the hour of the day for one; whoever does not beat this has foretold nothing
                             else, and volatility is the target `volatility_<h>`
    linear                   multinomial logistic regression (scikit-learn) on the very same windows, its penalty
                             chosen by log loss on the validation part

All but `undirected` are fitted on `train`. A window of too many values enters the regression as into
`evaluation/ridge.py`'s, and of very many windows an even share is fitted on.

Legend: N rows asked about, R rows of all symbols, C classes, B bins, P columns.
"""

import warnings
from collections.abc import Collection, Iterator
from copy import deepcopy
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.evaluation.baselines import LINEAR
from ml_workbench_service.evaluation.ridge import WindowColumns
from ml_workbench_service.learning.calibration.class_metrics import (
    MAJORITY,
    ClassBaseline,
    class_frequencies,
    log_losses,
    majority,
    persistence,
    stated,
)
from ml_workbench_service.learning.data.windows import Windows, evenly
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.regimes import regime_features

PRESENT_STATISTICS = "present_statistics"
UNDIRECTED = "undirected"
NESTED = frozenset({MAJORITY})
"""The model without what it learnt: Clark and West's test is for these."""
NUM_BINS = (12, 6)
"""Of trend and of volatility, equally full: the rule's thresholds, two-thirds quantiles of |trend| and of volatility,
are borders of both, and a bin of one in 72 still has some dozen rows."""
PRIOR_ROWS = 20.0
"""Rows' worth of persistence in each bin."""
MOST_VALUES = 10_000_000
"""Windows x columns that the regression is fitted on: 40 MB."""
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Per row, strongest first; each fit goes on where the last one ended, until the validation part's log loss rises."""
MOST_ITERATIONS = 100
TOLERANCE = 1e-3


def class_baselines(problem: TrainingProblem, ends: Ints, *, without: Collection[str] = ()) -> list[ClassBaseline]:
    """What each baseline says of the rows asked about; `undirected` needs the model's answers and is asked by itself.

    Args:
        problem: data and the one target.
        ends: the rows asked about.
        without: baselines that are not asked for.
    """
    (target,), windows = problem.targets, problem.windows
    train = windows.parts["train"]
    train_labels_N, num_classes = windows.own_labels_RK[train, 0], len(target.classes)
    found = [majority(train_labels_N, num_rows=len(ends), num_classes=num_classes)]
    if target.measure == "market_regime":
        statistics_R2, present_R = _present_regimes(problem)
        stays = persistence(train_labels_N, present_R[train], present_N=present_R[ends], num_classes=num_classes)
        found += [stays, _by_statistics(problem, ends, statistics_R2, prior_NC=stays.probabilities_NC)]
    if LINEAR not in without:
        found.append(_linear(windows, ends, num_classes=num_classes))
    return found


def undirected(said_NC: Floats, train_labels_N: Floats) -> ClassBaseline:
    """The model's own probabilities of (fall, neither, rise), the two sides made as frequent as they were in training.

    Beside it a model's hold on volatility, good or bad, falls out of the comparison: what is left is the side.
    """
    frequencies_C = class_frequencies(train_labels_N, said_NC.shape[1])
    sides_C = frequencies_C * (1.0, 0.0, 1.0) / (frequencies_C[0] + frequencies_C[2])
    probabilities_NC = (1.0 - said_NC[:, 1:2]) * sides_C
    probabilities_NC[:, 1] = said_NC[:, 1]
    return ClassBaseline(UNDIRECTED, stated(probabilities_NC), probabilities_NC)


def _by_statistics(problem: TrainingProblem, ends: Ints, statistics_R2: Floats, *, prior_NC: Floats) -> ClassBaseline:
    """Frequencies by bins of trend and volatility, of each symbol; the prior alone where a statistic is unknown."""
    windows = problem.windows
    labels_R, probabilities_NC = windows.own_labels_RK[:, 0], np.array(prior_NC)
    known_R = np.asarray(np.isfinite(statistics_R2).all(axis=1))
    for number in range(len(windows.symbols)):
        train = windows.parts["train"]
        known = train[(windows.symbol_R[train] == number) & known_R[train]]
        asked = np.flatnonzero((windows.symbol_R[ends] == number) & known_R[ends])
        probabilities_NC[asked] = by_statistics(
            statistics_R2, labels_R, known=known, asked=ends[asked], prior_NC=prior_NC[asked]
        )
    return ClassBaseline(PRESENT_STATISTICS, stated(probabilities_NC), probabilities_NC)


def by_statistics(statistics_R2: Floats, labels_R: Floats, *, known: Ints, asked: Ints, prior_NC: Floats) -> Floats:
    """(N, C) frequencies of the classes where one symbol's statistics stood as they do at the rows asked about.

    Args:
        statistics_R2: trend and volatility (`regime_features`).
        labels_R: numbers of the classes that followed.
        known: rows that the frequencies are of, with both statistics.
        asked: N rows with both statistics.
        prior_NC: what is said of them without statistics, worth `PRIOR_ROWS`.
    """
    bins_R = _bins(statistics_R2, known)
    counts_BC = np.zeros((NUM_BINS[0] * NUM_BINS[1], prior_NC.shape[1]))
    np.add.at(counts_BC, (bins_R[known], labels_R[known].astype(np.int64)), 1.0)
    counts_NC = counts_BC[bins_R[asked]] + PRIOR_ROWS * prior_NC
    return np.asarray(counts_NC / counts_NC.sum(axis=1, keepdims=True))


def _bins(statistics_R2: Floats, known: Ints) -> Ints:
    """(R,) the cell of each row, by quantiles of the rows that are known; of unknown ones any."""
    place_R = np.zeros(len(statistics_R2), dtype=np.int64)
    for values_R, num in zip(statistics_R2.T, NUM_BINS, strict=True):
        edges = np.quantile(values_R[known], np.linspace(0, 1, num + 1)[1:-1]) if len(known) else np.zeros(0)
        place_R = place_R * num + np.searchsorted(edges, np.nan_to_num(values_R))
    return place_R


def _linear(windows: Windows, ends: Ints, *, num_classes: int) -> ClassBaseline:
    """Where no penalty beats the frequencies on the validation part, and of a single class, those answer."""
    columns = WindowColumns.of(windows)
    most = max(1000, MOST_VALUES // columns.num)
    train, validation = (evenly(windows.parts[part], most) for part in ("train", "validation"))
    labels_N, validation_labels_N = (windows.own_labels_RK[part, 0].astype(np.int64) for part in (train, validation))
    frequencies_C = class_frequencies(labels_N, num_classes)
    best, validation_NP = None, _gathered(columns, validation)
    best_loss = float(np.mean(log_losses(validation_labels_N, np.tile(frequencies_C, (len(validation), 1)))))
    for model in _regressions(_gathered(columns, train), labels_N):
        loss = float(np.mean(log_losses(validation_labels_N, _probabilities(model, validation_NP, frequencies_C))))
        if loss >= best_loss:
            break
        best, best_loss = deepcopy(model), loss
    probabilities_NC = np.tile(frequencies_C, (len(ends), 1))
    if best is not None:
        for place, values_NP in columns.blocks(ends):
            probabilities_NC[place] = _probabilities(best, values_NP.astype(np.float32), frequencies_C)
    return ClassBaseline(LINEAR, stated(probabilities_NC), probabilities_NC)


def _regressions(x_NP: Floats32, labels_N: Ints) -> Iterator[Any]:
    """The same regression at weaker and weaker penalties; none where there is nothing to tell apart."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels_N)) < 2:
        return
    model = LogisticRegression(warm_start=True, max_iter=MOST_ITERATIONS, tol=TOLERANCE)
    for penalty in PENALTIES:
        model.set_params(C=1 / (penalty * len(labels_N)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early it is a smoother one
            model.fit(x_NP, labels_N)
        yield model


def _probabilities(model: Any, x_NP: Floats32, frequencies_C: Floats) -> Floats:
    """(N, C); classes that the training part never had keep the share that their frequencies give them."""
    known_K = np.asarray(model.classes_, dtype=np.int64)
    probabilities_NC = np.tile(frequencies_C, (len(x_NP), 1))
    said_NK = np.asarray(model.predict_proba(x_NP), dtype=np.float64)
    probabilities_NC[:, known_K] = said_NK * float(frequencies_C[known_K].sum())
    return np.asarray(probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True))


def _gathered(columns: WindowColumns, ends: Ints) -> Floats32:
    values_NP = np.empty((len(ends), columns.num), dtype=np.float32)
    for place, block_NP in columns.blocks(ends):
        values_NP[place] = block_NP
    return values_NP


def _present_regimes(problem: TrainingProblem) -> tuple[Floats, Floats]:
    """(R, 2) trend and volatility of each row, and (R,) the regime that it is in by its symbol's rule."""
    windows = problem.windows
    statistics_R2, present_R = np.full((len(windows.close_R), 2), np.nan), np.full(len(windows.close_R), np.nan)
    for number, symbol in enumerate(windows.symbols):
        own = windows.symbol_R == number
        trend_N, volatility_N = regime_features(windows.close_R[own], windows.runs_R[own])
        statistics_R2[own] = np.column_stack([trend_N, volatility_N])
        present_R[own] = problem.regimes[symbol].classify(trend_N, volatility_N)
    return statistics_R2, present_R
