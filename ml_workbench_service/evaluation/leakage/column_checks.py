"""Target leakage in ready-made columns: near copies of the target, columns of later prices, look-ahead joins.

Whoever brings a column brings its past with it, and nobody can make it again from bars. What can be asked is what it
tells. A model sees a window of the column and the price's own past; so the outcome is regressed on both, linearly and
by normal ranks (any monotone disguise), for where the price goes and for how far, each half of the time from the other.

    telling = 1 - squared errors with the column ÷ squared errors without it          limit `IMPLAUSIBLE`

One regression finds what many special tests would look for: a copy with another sign, unit, lag or lead, one under
noise or a monotone function, the next bar's high, and a centred average, whose lags and the past returns give the next
return away exactly. A column that stays for several bars is asked at its steps as well: a day's close, joined by date,
tells at the day's first bar where the day ends. So is one that hides such a price in its distance from the close, as a
ratio, a logarithm or a difference in any unit: the price behind it stays where it is while the column undoes each move
of the close. Moves are measured from a step to the next: that is a stopping time, so of a martingale no honest column
tells anything there, whatever makes it step (Doob's optional stopping).

When it fails: a column may know the future and tell less than the limit, so silence proves nothing; the certificate
says `unprovable` unless the column is proven otherwise (`leakage.proof`). Structure over more than `MOST_LAGS` bars is
not seen, nor are codes of more than `MOST_CODES` values that no monotone function reads.

Legend: N bars of one symbol, S chosen rows, X regressors, O outcomes, L lags, B blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints

IMPLAUSIBLE = 0.5
"""Share of what the past leaves open. A price that is white noise about a level, the most predictable that any trader
ever leaves, is foretold to R² 1/2 by its distance from the level: r(t+1) = e(t+1) - e(t). Of squared returns nobody
foretells more than one over their shocks' kurtosis, a third under the normal (Andersen and Bollerslev, "Answering the
skeptics", International Economic Review 39, 1998). Published forecasts of exchange rates stay under 5 % (Rossi,
"Exchange rate predictability", Journal of Economic Literature 51, 2013). A fair signal of R² 30 % stays far below."""
STANDARD_ERRORS = 3.0
"""By which the telling must exceed the limit: an R² in a small sample is loose."""
FEWEST_ROWS = 100
FEWEST_HORIZONS = 50
"""Labels that overlap are few observations, and two slow series agree by chance: fewer horizons tell nothing."""
MOST_ROWS = 4000
MOST_LAGS = 40
PAST_LAGS = 48
ROWS_PER_LAG = 40
CODE_LAGS = 4
MOST_CODES = 8
FEWEST_BLOCKS = 40
LONGEST_SHARE = 0.5
"""A column of steps stays where it is for at least this share of the bars."""
STILL_SHARE, ROUNDED_SHARE = 0.05, 0.02
"""Of the close's own move, and of its median one: a price behind a column that moves less than both together stays
where it is. A simple ratio is no logarithm, and files round; of an unrelated column one bar in twenty looks so."""
SAME_SCALE = 0.7
"""Median distance in logarithms within which a column may be a price of this symbol: a factor of two."""
RIDGE = 1e-9
"""Of each regressor's variance: enough for lags that are copies of each other, and nothing beside a real slope."""


@dataclass(frozen=True)
class Outcome:
    """What a column may not foretell: a label or a price move; NaN where it is not known early enough to be asked."""

    name: str
    values_N: Floats
    horizon: int


@dataclass(frozen=True)
class Telling:
    """The outcome of which a column tells the most over the limit."""

    outcome: str
    share: float
    how: str


@dataclass(frozen=True)
class Past:
    """One symbol's closes and outcomes: what columns are asked against.

    Attributes:
        close_N: closes.
        outcomes: labels; the next bar's move is always asked as well.
        until: rows that may be read: those before the untouched test part.
        lookback: bars of the column that a model sees at once.
    """

    close_N: Floats
    outcomes: Sequence[Outcome]
    until: int
    lookback: int

    @cached_property
    def moves_N(self) -> Floats:
        """Log return of each bar; 0 for the first."""
        moves_N = np.diff(np.log(self.close_N), prepend=np.log(self.close_N[:1]))
        return np.asarray(np.nan_to_num(moves_N))

    @cached_property
    def asked(self) -> list[Outcome]:
        """The next bar's move, and the labels that are many enough."""
        ahead_N = np.append(self.moves_N[1:], np.nan)
        ahead_N[max(self.until - 1, 0) :] = np.nan
        known = [each for each in self.outcomes if np.isfinite(each.values_N).sum() >= FEWEST_HORIZONS * each.horizon]
        return [Outcome("the next bar's move", ahead_N, 1), *known]

    @cached_property
    def rows(self) -> Ints:
        """At most `MOST_ROWS` rows over the whole time, each with its lags before it."""
        rows = np.arange(min(PAST_LAGS, self.until // 4), self.until)
        return rows[:: max(1, -(-len(rows) // MOST_ROWS))]

    @cached_property
    def num_lags(self) -> int:
        """Lags of a column, as many as the model sees and the rows allow."""
        return int(max(1, min(max(self.lookback, 24), MOST_LAGS, len(self.rows) // ROWS_PER_LAG)))

    @cached_property
    def questions(self) -> dict[str, "_Question"]:
        """What is asked of every column, by how it is asked."""
        moves = {each.name: each.values_N for each in self.asked}
        ranks = {name: _scores(values_N[:, None])[:, 0] for name, values_N in moves.items()}
        sizes = {name: _scores(np.abs(values_N)[:, None])[:, 0] for name, values_N in moves.items()}
        squares = {self.asked[0].name: self.asked[0].values_N ** 2}
        past_sizes_N = _scores(np.abs(self.moves_N)[:, None])[:, 0]
        return {
            "": _Question.of(self, self.moves_N, moves),
            "by rank": _Question.of(self, self.moves_N, ranks),
            "in size": _Question.of(self, self.moves_N**2, squares),
            "in size, by rank": _Question.of(self, past_sizes_N, sizes),
        }


@dataclass(frozen=True)
class _Question:
    """Outcomes beside what the price's past tells of them."""

    outcomes: tuple[Outcome, ...]
    rows: Ints  # (S,)
    controls_SX: Floats
    outcomes_SO: Floats

    @classmethod
    def of(cls, past: Past, past_N: Floats, outcomes: Mapping[str, Floats]) -> "_Question":
        """At the rows where all outcomes are known, or where the first one is if those are few."""
        asked = [each for each in past.asked if each.name in outcomes]
        known_NO = np.column_stack([np.isfinite(outcomes[each.name]) for each in asked])
        rows = past.rows[known_NO[past.rows].all(axis=1)]
        if len(rows) < max(FEWEST_ROWS, len(past.rows) // 4):
            asked, rows = asked[:1], past.rows[known_NO[past.rows, 0]]
        num = int(max(1, min(PAST_LAGS, len(rows) // ROWS_PER_LAG)))
        own = [
            np.append(np.full(each.horizon, np.nan), outcomes[each.name][: -each.horizon])[rows] for each in asked
        ]  # the outcome that was known last
        return cls(
            outcomes=tuple(asked),
            rows=rows,
            controls_SX=np.column_stack([_lags(past_N, rows, num), *(_filled(each[:, None]) for each in own)]),
            outcomes_SO=np.column_stack([outcomes[each.name][rows] for each in asked]),
        )

    @cached_property
    def unexplained_O(self) -> Floats:
        """Squared errors without any column."""
        return _unexplained(self.controls_SX, self.outcomes_SO)

    def answered(self, told_SX: Floats, how: str) -> list[Telling]:
        """What these regressors tell, where it is too much."""
        if len(self.rows) < FEWEST_ROWS:
            return []
        errors_O = _errors(np.hstack([self.controls_SX, told_SX]), self.outcomes_SO)
        found = []
        for outcome, used, bare in zip(self.outcomes, errors_O, self.unexplained_O, strict=True):
            share = 1.0 - float(used / bare) if bare > 0 else 0.0
            if _is_implausible(share, len(self.rows) / outcome.horizon):
                found.append(Telling(outcome.name, share, how))
        return found


def near_copy(column_N: Floats, past: Past) -> Telling | None:
    """What the column tells of an outcome, where that is more than plausible; None elsewhere.

    Args:
        column_N: the column, NaN where it has no value.
        past: prices and outcomes of the same symbol.
    """
    if len(past.rows) < FEWEST_ROWS or not np.isfinite(column_N[past.rows]).any():
        return None
    found: list[Telling] = []
    for reading_N in _readings(column_N, past.close_N):
        centred_N = reading_N - np.nanmedian(reading_N)
        ranks_N, far_N = (_scores(each[:, None])[:, 0] for each in (reading_N, np.abs(centred_N)))
        regressors = {
            "": (reading_N,),
            "by rank": (ranks_N,),
            "in size": (reading_N, centred_N**2),
            "in size, by rank": (ranks_N, far_N),
        }
        for how, read in regressors.items():
            question = past.questions[how]
            found += question.answered(np.hstack([_lags(each, question.rows, past.num_lags) for each in read]), how)
    codes = np.unique(column_N[np.isfinite(column_N)])
    if 1 < len(codes) <= MOST_CODES:
        question, num = past.questions[""], min(CODE_LAGS, past.num_lags)
        marks = [_lags((column_N == code).astype(np.float64), question.rows, num) for code in codes[1:]]
        found += question.answered(np.hstack(marks), "by its codes")
    return max(found, key=lambda each: each.share, default=None)


def joined_ahead(column_N: Floats, past: Past) -> Telling | None:
    """What a column that moves in steps, or the price behind it, tells at a step of the time until the next one."""
    column_N, close_N = column_N[: past.until], past.close_N[: past.until]
    found: list[Telling] = []
    for starts in _steps(column_N, close_N):
        outcomes = _until_next_step(starts, past)
        for reading_N in _readings(column_N, close_N):
            values_B = reading_N[starts]
            told_BX = _filled(np.column_stack([values_B, np.diff(values_B, prepend=values_B[:1])]))[1:-1]
            for name, outcome_B in outcomes.items():
                found += _told_at_steps(name, told_BX, outcome_B)
    return max(found, key=lambda each: each.share, default=None)


def _steps(column_N: Floats, close_N: Floats) -> list[Ints]:
    """First bars of each step of the column, and of the price behind it, where those are few enough to be steps."""
    found: list[Ints] = []
    for moves_N, still_N in _latent_moves(column_N, close_N):
        moved_N = ~(np.abs(moves_N) <= still_N)  # a missing value is no price that stays
        starts = np.flatnonzero(np.append(True, moved_N) & np.isfinite(column_N))
        if FEWEST_BLOCKS + 2 <= len(starts) <= (1 - LONGEST_SHARE) * len(column_N):
            found.append(starts)
    return found


def _latent_moves(column_N: Floats, close_N: Floats) -> list[tuple[Floats, Floats]]:
    """(N - 1,) moves of the column; and of the price, or its logarithm, of which it may be the distance from the close.

    Each with how far it may move and still count as staying. While that price stays, the column undoes every move of
    the close, so their typical ratio is the column's unit.
    """
    found = [(np.diff(column_N), np.zeros(len(column_N) - 1))]
    logs_N = np.log(np.where(column_N > 0, column_N, np.nan))
    for distance_N, scale_N in ((column_N, np.log(close_N)), (column_N, close_N), (logs_N, np.log(close_N))):
        moves_N, own_N = np.diff(distance_N), np.diff(scale_N)
        both_N = np.isfinite(moves_N) & (moves_N != 0.0) & (own_N != 0.0)
        if both_N.sum() < FEWEST_ROWS:
            continue
        unit = float(np.median(-own_N[both_N] / moves_N[both_N]))
        if unit != 0.0:
            typical = float(np.median(np.abs(own_N[both_N])))
            found.append((own_N + unit * moves_N, STILL_SHARE * np.abs(own_N) + ROUNDED_SHARE * typical))
    return found


def _until_next_step(starts: Ints, past: Past) -> dict[str, Floats]:
    """(B,) what happens from each step's first bar on."""
    log_close_N = np.log(past.close_N)
    last = past.until - 1
    nexts = np.append(starts[1:], last)
    lasts = np.append(starts[1:] - 1, last)
    squares_N = np.append(0.0, np.cumsum(past.moves_N**2))
    return {
        "the move until its next step": log_close_N[lasts] - log_close_N[starts],
        "the move up to its next step": log_close_N[nexts] - log_close_N[starts],
        "the size of the moves until its next step": np.sqrt(squares_N[lasts + 1] - squares_N[starts + 1]),
    }


def _told_at_steps(name: str, told_BX: Floats, outcome_B: Floats) -> list[Telling]:
    """What values at steps tell of an outcome beyond the one before, as they are and by rank, where it is too much."""
    before_BX, after_BO = outcome_B[:-2, None], outcome_B[1:-1, None]
    found = []
    for read in (lambda values: values, _scores):
        controls_BX, told, asked_BO = read(before_BX), read(told_BX), read(after_BO)
        bare = float(_unexplained(controls_BX, asked_BO)[0])
        share = 1.0 - float(_errors(np.hstack([controls_BX, told]), asked_BO)[0]) / bare if bare > 0 else 0.0
        if _is_implausible(share, len(asked_BO)):
            found.append(Telling(name, share, "at its steps"))
    return found


def _is_implausible(share: float, num_independent: float) -> bool:
    """Whether a share is over the limit by its standard errors."""
    error = 2 * np.sqrt(max(share, 0.0)) * (1 - share) / np.sqrt(max(num_independent, 1.0))
    return bool(share - STANDARD_ERRORS * error > IMPLAUSIBLE)


def _readings(column_N: Floats, close_N: Floats) -> list[Floats]:
    """The column as it is, and its distance from the close where it may be a price."""
    known = column_N[np.isfinite(column_N)]
    if not len(known) or not (known > 0).all():
        return [column_N]
    distance_N = np.log(np.where(np.isfinite(column_N), column_N, 1.0)) - np.log(close_N)
    distance_N[~np.isfinite(column_N)] = np.nan
    if np.nanmedian(np.abs(distance_N)) > SAME_SCALE:
        return [column_N]
    return [column_N, distance_N]


def _unexplained(controls_SX: Floats, outcomes_SO: Floats) -> Floats:
    """(O,) squared errors of the better of the mean and a regression on the controls."""
    nothing_SX = np.zeros((len(outcomes_SO), 0))
    return np.minimum(_errors(nothing_SX, outcomes_SO), _errors(controls_SX, outcomes_SO))


def _errors(told_SX: Floats, outcomes_SO: Floats) -> Floats:
    """(O,) squared errors of a regression that forecasts each half of the time from the other."""
    num, total_O = len(outcomes_SO), np.zeros(outcomes_SO.shape[1])
    for fitted, rest in ((slice(0, num // 2), slice(num // 2, num)), (slice(num // 2, num), slice(0, num // 2))):
        center_X, scale_X = told_SX[fitted].mean(axis=0), told_SX[fitted].std(axis=0)
        varied_X = scale_X > 1e-12 * np.maximum(np.abs(center_X), 1e-300)
        scaled_SX = (told_SX[:, varied_X] - center_X[varied_X]) / scale_X[varied_X]
        level_O = outcomes_SO[fitted].mean(axis=0)
        fit_SX = scaled_SX[fitted]
        gram_XX = fit_SX.T @ fit_SX + RIDGE * len(fit_SX) * np.eye(fit_SX.shape[1])
        slopes_XO = np.linalg.solve(gram_XX, fit_SX.T @ (outcomes_SO[fitted] - level_O))
        total_O += ((outcomes_SO[rest] - level_O - scaled_SX[rest] @ slopes_XO) ** 2).sum(axis=0)
    return total_O


def _lags(values_N: Floats, rows: Ints, num: int) -> Floats:
    """(S, L) the value at each row and the ones before it; what is missing becomes the mean."""
    return _filled(values_N[np.maximum(rows[:, None] - np.arange(num), 0)])


def _filled(values_SX: Floats) -> Floats:
    known = np.isfinite(values_SX)
    total = known.sum(axis=0)
    mean_X = np.where(known, values_SX, 0.0).sum(axis=0) / np.maximum(total, 1)
    return np.where(known, values_SX, mean_X)


def _scores(values_NX: Floats) -> Floats:
    """Normal scores of each column's ranks; equal values share one, NaN stays."""
    from scipy.special import ndtri

    scores_NX = np.full(values_NX.shape, np.nan)
    for column in range(values_NX.shape[1]):
        known = np.isfinite(values_NX[:, column])
        values = values_NX[known, column]
        ordered = np.sort(values)
        middle = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
        scores_NX[known, column] = ndtri((middle + 0.5) / (len(values) + 1.0))
    return scores_NX
