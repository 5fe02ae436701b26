"""Grid search of the Q-learning agent's settings on one recording, each with several seeds, ranked without luck.

Every setting meets the recording once, as the live agent would have: each decision is taken before the table has seen
what follows, so what a run earns while it learns is out of its sample (prequential: Dawid, "Statistical theory: the
prequential approach", Journal of the Royal Statistical Society A 147, 1984), and the grid ends with the recording. A
setting is ranked by its mean over the seeds, between equals by the smaller spread; its luckiest run counts for nothing.

It fails where the predictions say nothing: then all settings lose their costs, and the first is the most timid one. The
best of 27 means is itself a choice: `GridRow.daily_returns` are for deflating it (`market.performance`).

Everything is computed in `reinforcement/agent_simulator.py`; nothing here needs numba before a grid runs.

Legend: M records, S settings, L runs (a setting and a seed each), D days, K figures of a run.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.q_table import USUAL_WIDTH, StateBins
from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Costs, Floats, Ints
from ml_workbench_service.contracts.prediction import Sample
from ml_workbench_service.contracts.recordings import Recording
from ml_workbench_service.market.calendar import swap_days
from ml_workbench_service.market.costs import BASIS_POINT, pip_size, spot_lag_days
from ml_workbench_service.market.performance import daily_returns, fx_dates, sharpe
from ml_workbench_service.market.trading_series import FILL_DELAY

if TYPE_CHECKING:  # it needs numba, the API does not
    from ml_workbench_service.reinforcement.agent_simulator import Records

Q_LEARNING_GRID: Mapping[str, tuple[float, ...]] = {
    "learning_rate": (0.01, 0.1, 0.5),
    "exploration_rate": (1.0, 0.8, 0.5),
    "discount_factor": (0.9, 0.95, 0.99),
}
"""The preset `q_learning_grid`: 27 settings."""
MOST_SETTINGS = 10_000
STEPS_AT_ONCE = 20_000_000
"""Records times runs between two looks for a cancellation; some 0.3 s."""


@dataclass(frozen=True)
class GridRow:
    """One setting: means over its seeds, and the standard deviation of what is ranked.

    Attributes:
        number: place in the grid's own order, from 0.
        params: what was searched.
        net: log return after costs while it learnt, all symbols' together.
        spread: standard deviation of `net` over the seeds; 0 for one seed.
        late_net: `net` of the last half of the records alone, when less is explored; `late_spread` likewise.
        gross: log return before costs.
        turnover: sum of the changes of position.
        share_in_market: share of the steps with a position.
        exploration_rate: at the end.
        net_by_seed: in the order of the seeds.
        sharpe: of the days, per day; None where nothing varies.
        daily_returns: net log return of each FX day, mean over seeds and symbols; for deflating the ranking.
    """

    number: int
    params: Mapping[str, Any]
    net: float
    spread: float
    late_net: float
    late_spread: float
    gross: float
    turnover: float
    share_in_market: float
    exploration_rate: float
    net_by_seed: tuple[float, ...]
    sharpe: float | None
    daily_returns: Mapping[str, float]


@dataclass(frozen=True)
class GridOutcome:
    """The settings, best first, and what they were run on."""

    ranking: list[GridRow]
    seeds: tuple[int, ...]
    num_records: int
    num_by_sample: Mapping[Sample, int]

    @property
    def best(self) -> GridRow:
        """The first."""
        return self.ranking[0]


def grid_settings(
    choices: Mapping[str, Sequence[Any]] = Q_LEARNING_GRID, *, fixed: Mapping[str, Any] | None = None
) -> list[tuple[dict[str, Any], QLearningHyperparameters]]:
    """Every combination, the last one named varying fastest: what was searched, and the whole setting.

    Args:
        choices: values of each hyper-parameter that is searched.
        fixed: those that are not; the defaults for the rest.

    Raises:
        DataValidationError: an unknown name, a value out of bounds, `seed` (that is what `seeds` are for), or too many
            combinations.
    """
    if "seed" in choices or (fixed and "seed" in fixed):
        raise DataValidationError.at("body.search_space.seed", "seeds are no setting: send them as `base.seeds`")
    num = int(np.prod([len(values) for values in choices.values()], dtype=np.float64)) if choices else 0
    if not 0 < num <= MOST_SETTINGS:
        raise DataValidationError.at(
            "body.search_space", f"the choices make {num} settings; send between 1 and {MOST_SETTINGS}"
        )
    settings = []
    for values in product(*choices.values()):
        params = dict(zip(choices, values, strict=True))
        try:
            settings.append((params, QLearningHyperparameters.model_validate({**(fixed or {}), **params})))
        except ValidationError as error:
            raise _refused(error, choices) from error
    return settings


def run_grid(
    recording: Recording,
    settings: Sequence[tuple[Mapping[str, Any], QLearningHyperparameters]],
    *,
    seeds: Sequence[int],
    bins: StateBins,
    costs: Costs | None = None,
    report: Report | None = None,
    num_threads: int | None = None,
) -> GridOutcome:
    """Runs every setting with every seed over the recording, once.

    Args:
        recording: predictions, oldest first.
        settings: what was searched and the whole setting, as `grid_settings` makes them; their own seeds do not count.
        seeds: of the exploration; each setting gets a table for each.
        bins: the agent's.
        costs: fields that replace those of the records; what is left open stays as the records have it.
        report: hears of runs done; may cancel.
        num_threads: default: one for each processor at hand; they change no bit of the outcome.

    Raises:
        DataValidationError: no setting, no seed, or a recording in which no step is ever settled.
        JobCancelled: somebody asked for it.
    """
    if not settings or not seeds:
        raise DataValidationError.at(
            "body.search_space", "a grid needs a setting and a seed; send at least one of each"
        )
    from ml_workbench_service.reinforcement.agent_simulator import NUM_FIGURES, walk_runs
    from ml_workbench_service.reinforcement.tabular_q import QSettings

    records, days = records_of(recording, bins=bins, costs=costs)
    runs = [each.model_copy(update={"seed": int(seed)}) for _, each in settings for seed in seeds]
    threads = num_threads or len(os.sched_getaffinity(0))
    at_once = max(threads, STEPS_AT_ONCE // len(recording))
    figures_LK = np.zeros((len(runs), NUM_FIGURES))
    days_SD = np.zeros((len(settings), len(days)))
    for begin in range(0, len(runs), at_once):
        if report is not None:
            report.check()
        walked = walk_runs(records, QSettings.of(runs[begin : begin + at_once]), num_threads=threads)
        end = begin + len(walked.figures_LK)
        figures_LK[begin:end] = walked.figures_LK
        np.add.at(days_SD, np.arange(begin, end) // len(seeds), walked.days_LD)
        if report is not None:
            report(end, len(runs))
    days_SD /= len(seeds) * len(recording.symbols)
    rows = [
        _row(number, params, figures_LK[number * len(seeds) : (number + 1) * len(seeds)], days, days_SD[number])
        for number, (params, _) in enumerate(settings)
    ]
    ranking = sorted(rows, key=lambda row: (-row.net, row.spread, row.number))
    return GridOutcome(ranking, tuple(int(seed) for seed in seeds), len(recording), recording.num_by_sample)


def records_of(
    recording: Recording, *, bins: StateBins, costs: Costs | None = None
) -> tuple["Records", tuple[str, ...]]:
    """A recording as runs walk over it, and the names of its days; see `run_grid`.

    A step begins at the open (of fixings: the close) of the record before its symbol's, whatever bars are missing in
    between, and pays what trading cost there.
    """
    from ml_workbench_service.reinforcement.agent_simulator import Records, reward_table

    before_M, rank_M = _before(recording.symbol_M, len(recording.symbols))
    settles_M = rank_M > FILL_DELAY
    points = _fill_points(recording, before_M)
    if not settles_M.any():
        raise DataValidationError.at(
            "body.base.end_date", "the recording is too short for any step to be settled; send a longer range"
        )
    days, day_M = _days(points.at_ms_M, settles_M)
    move_M = points.price_M / points.price_M[before_M] - 1.0
    rewards_M33, gross_M3 = reward_table(move_M, *_charges(recording, points, before_M, costs))
    num_widths = len(bins.width_edges) + 1
    num_bins = (len(bins.strength_edges) + 2) * num_widths
    return Records(
        rewards_M33=rewards_M33,
        gross_M3=gross_M3,
        symbol_M=recording.symbol_M,
        bins_M=market_bins(recording, bins),
        idle_B=np.arange(num_bins) // num_widths == len(bins.strength_edges) + 1,
        keeps_M=recording.kept_M,
        day_M=day_M,
        num_symbols=len(recording.symbols),
        num_days=len(days),
    ), days


class _FillPoints(NamedTuple):
    """Where steps begin and end: moment, price, and spread in pips (NaN: that of the record's costs)."""

    at_ms_M: Ints
    price_M: Floats
    spread_M: Floats


def _fill_points(recording: Recording, before_M: Ints) -> _FillPoints:
    """As `agents.agent` has them: the open, or, where a record lacks it, the close of its symbol's record before."""
    unknown_M = np.full(len(recording), np.nan)
    if recording.fill == "next_close":
        return _FillPoints(recording.as_of_ms_M, recording.price_M, unknown_M)
    has_open_M = np.isfinite(recording.open_M)
    pip_M = np.array([pip_size(symbol) for symbol in recording.symbols])[recording.symbol_M]
    return _FillPoints(
        np.where(has_open_M, recording.opened_ms_M, recording.as_of_ms_M[before_M]),
        np.where(has_open_M, recording.open_M, recording.price_M[before_M]),
        np.where(has_open_M, recording.spread_open_M / pip_M, unknown_M),
    )


def market_bins(recording: Recording, bins: StateBins) -> Ints:
    """The agent's state of each record but for the position: strength bin, then width bin (`agents.q_learning_agent`).

    Without a volatility the interval's width stands for it; with neither the forecast is of unknown strength, 0.
    """
    silent_M = recording.abstained_M | np.isnan(recording.prediction_M)
    leans_M = np.isfinite(recording.strength_M)
    width_M, scale_M = recording.width_M, recording.volatility_M
    scale_M = np.where(np.isfinite(scale_M) & (scale_M != 0), scale_M, width_M / USUAL_WIDTH)
    scaled_M = ~leans_M & (scale_M > 0)
    scale_M = np.where(scaled_M, scale_M, 1.0)
    strength_M = np.where(scaled_M, recording.prediction_M / scale_M, np.where(leans_M, recording.strength_M, 0.0))
    width_M = np.where(scaled_M & np.isfinite(width_M) & ~silent_M, width_M / scale_M, USUAL_WIDTH)
    place_M = np.searchsorted(np.asarray(bins.strength_edges), strength_M, side="left")
    place_M = np.where(silent_M, len(bins.strength_edges) + 1, place_M)
    found: Ints = place_M * (len(bins.width_edges) + 1) + np.searchsorted(np.asarray(bins.width_edges), width_M)
    return found


def _before(symbol_M: Ints, num_symbols: int) -> tuple[Ints, Ints]:
    """The record before each one of its symbol (itself for the first), and how many there are before it."""
    before_M, rank_M = np.arange(len(symbol_M)), np.zeros(len(symbol_M), dtype=np.int64)
    for symbol in range(num_symbols):
        own = np.flatnonzero(symbol_M == symbol)
        before_M[own[1:]] = own[:-1]
        rank_M[own] = np.arange(len(own))
    return before_M, rank_M


def _charges(
    recording: Recording, points: _FillPoints, before_M: Ints, costs: Costs | None
) -> tuple[Floats, Floats, Floats]:
    """Unit cost, swap long and swap short of each step, by the formulas of `market/costs.py`, in their order."""
    charges_M5, opening_M = recording.costs_M5[before_M], points.spread_M[before_M]
    charges_M5[:, 0] = np.where(np.isfinite(opening_M), opening_M, charges_M5[:, 0])
    for place, name in enumerate(Costs.model_fields):
        value = None if costs is None else getattr(costs, name)
        if value is not None:
            charges_M5[:, place] = value
    spread_M, commission_M, slippage_M, long_M, short_M = charges_M5.T
    pip_M = np.array([pip_size(symbol) for symbol in recording.symbols])[recording.symbol_M]
    price_M = points.price_M[before_M]
    settling_M = np.array([spot_lag_days(symbol) for symbol in recording.symbols])[recording.symbol_M]
    since_ms_M = points.at_ms_M[before_M]
    nights_M = swap_days(since_ms_M, np.maximum(points.at_ms_M, since_ms_M), spot_lag_days=settling_M)
    return (
        spread_M * pip_M / 2 / price_M + (commission_M + slippage_M) * BASIS_POINT,
        nights_M * long_M * pip_M / price_M,
        nights_M * short_M * pip_M / price_M,
    )


def _days(settled_ms_M: Ints, settles_M: Any) -> tuple[tuple[str, ...], Ints]:
    """The FX days on which steps settle, as `market.performance.daily_returns` names them; each record's place."""
    settled_ms = settled_ms_M[settles_M]
    days = tuple(daily_returns(np.zeros(len(settled_ms)), settled_ms))
    dates = fx_dates(settled_ms_M)
    return days, np.searchsorted(np.array(days, dtype="datetime64[D]"), dates).astype(np.int64)


def _row(number: int, params: Mapping[str, Any], figures_NK: Floats, days: tuple[str, ...], daily_D: Floats) -> GridRow:
    from ml_workbench_service.reinforcement import agent_simulator as column

    means_K = figures_NK.mean(axis=0)
    spreads_K = figures_NK.std(axis=0, ddof=1) if len(figures_NK) > 1 else np.zeros(len(means_K))
    return GridRow(
        number=number,
        params=dict(params),
        net=float(means_K[column.NET]),
        spread=float(spreads_K[column.NET]),
        late_net=float(means_K[column.LATE_NET]),
        late_spread=float(spreads_K[column.LATE_NET]),
        gross=float(means_K[column.GROSS]),
        turnover=float(means_K[column.TURNOVER]),
        share_in_market=float(means_K[column.NUM_HELD] / means_K[column.NUM_SETTLED]),
        exploration_rate=float(means_K[column.EXPLORATION]),
        net_by_seed=tuple(figures_NK[:, column.NET].tolist()),
        sharpe=sharpe(daily_D),
        daily_returns=dict(zip(days, daily_D.tolist(), strict=True)),
    )


def _refused(error: ValidationError, choices: Mapping[str, Sequence[Any]]) -> DataValidationError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    path = f"body.search_space.{name}" if name in choices else f"body.base.hyperparameters.{name}"
    known = [each for each in QLearningHyperparameters.model_fields if each != "seed"]
    near = close_names(name, known, n=1)
    said = f"did you mean {near[0]}?" if near and name not in known else f"{first['msg']};"
    return DataValidationError.at(
        path, f"{name}: {said} the agent q_learning has {', '.join(known)}", code=first["type"]
    )
