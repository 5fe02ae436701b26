"""Interval coverage by hour: whether nine of ten stay covered at each time of the day, by walk-forward.

Forecasts of no change over one bar and over four, with the service's own volatility, decoder and intervals. Each series
is walked in steps: the season is learnt from all bars before the calibration, the interval from the calibration's,
labels purged between, and what comes next is tested. Beside them the same intervals on an EWMA that knows no season.

- EUR/USD 2017: the real hours of the package gym-anytrading, as they are. The year begins under twenty weeks of
  training, so both kinds of profile are tested.
- simulated centres: the working days of Tokyo, London and New York, each by its own clock and its changes, times a
  volatility that clusters, with Student's t and jumps; another pattern for each series.

Legend: N bars of one series.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation.distribution_metrics import DecodedRows, coverage_by_hour
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.learning.calibration.conformal import INTERVAL_LEVEL
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder
from ml_workbench_service.market import calendar
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, seasonal_volatility
from ml_workbench_service.market.targets import label, log_returns
from studies.tables import Goal, Run, Table

BAR_MS = TIMEFRAMES_MS["1h"]
REAL = "EUR/USD 2017"
REAL_FILE = ("datasets", "data", "FOREX_EURUSD_1H_ASK.csv")
HORIZONS = (1, 4)
NUM_SIMULATED, SIMULATED_BARS = 6, 24_000
NUM_BLOCKS, MOST_APART = 8, 0.05
"""Blocks of three hours, and how far the coverage of each may lie from its promise (finance.md)."""
FEWEST_REAL_ROWS = 5000


@dataclass(frozen=True)
class Steps:
    """Of a walk-forward, in bars: where the first test begins, and how long calibrations and tests are."""

    first: int
    calibration: int
    test: int


REAL_STEPS, SIMULATED_STEPS = Steps(900, 300, 400), Steps(6_000, 2_000, 2_000)


@dataclass(frozen=True)
class Series:
    """One series of hourly bars."""

    name: str
    opened_ms: Ints  # (N,)
    close: Floats  # (N,)
    steps: Steps


@dataclass(frozen=True)
class Tested:
    """What became of one series' intervals."""

    name: str
    horizon: int
    covered: Bools  # of all tested bars
    moments_ms: Ints  # when each of them was known
    mean_width: float

    @property
    def by_block(self) -> Floats:
        """(8,) coverage in each three hours of the day, UTC."""
        block = self.moments_ms % calendar.DAY_MS * NUM_BLOCKS // calendar.DAY_MS
        return np.bincount(block, self.covered, NUM_BLOCKS) / np.bincount(block, minlength=NUM_BLOCKS)

    @property
    def failed_hours(self) -> int:
        """Hours that have failed as a card says it."""
        hours = coverage_by_hour(self.covered, self.moments_ms, level=INTERVAL_LEVEL, horizon=self.horizon)
        return sum(each.failed for each in hours)

    @property
    def most_apart(self) -> float:
        """The worst block's distance from the promise."""
        return float(np.abs(self.by_block - INTERVAL_LEVEL).max())


def tables(run: Run) -> list[Table]:
    """One row for each series and horizon."""
    num = run.size(NUM_SIMULATED, quick=1)
    bars = run.size(SIMULATED_BARS, quick=10_000)
    found = [
        (walked(series, horizon=horizon), walked(series, horizon=horizon, has_season=False))
        for series in (real_hours(), *(simulated_centres(run.seed, number, bars) for number in range(num)))
        for horizon in HORIZONS
    ]
    of_real = [seasonal for seasonal, _ in found if seasonal.name == REAL]
    others = [seasonal for seasonal, _ in found if seasonal.name != REAL]
    goals = [
        Goal("real rows tested", min(len(each.covered) for each in of_real), FEWEST_REAL_ROWS),
        Goal("real: worst block apart from 0.9", max(each.most_apart for each in of_real), MOST_APART, at_most=True),
        Goal(
            "simulated: worst block apart from 0.9", max(each.most_apart for each in others), MOST_APART, at_most=True
        ),
        Goal("simulated: hours failed", sum(each.failed_hours for each in others), 0, at_most=True),
    ]
    caption = (
        "Walk-forward of intervals around no change, 90 % promised, by three-hour blocks of the day (UTC, from "
        "midnight on). *Failed* hours as a card says it: Wilson's 99.9 % interval lies beyond five points."
    )
    columns = ["series", "bars ahead", "rows", "coverage", "by block", "hours failed", "by block without a season",
               "hours failed without"]  # fmt: skip
    return [Table("interval_hours", "Intervals by hour", caption, columns, [_row(*each) for each in found], goals)]


def walked(series: Series, *, horizon: int, has_season: bool = True) -> Tested:
    """Every step's test, one after the other."""
    target, num, steps = parse_target(f"log_return_{horizon}h"), len(series.close), series.steps
    known_ms, returns = series.opened_ms + BAR_MS, log_returns(series.close)
    labels = label(
        target, close=series.close, opened_ms=series.opened_ms, available_at_ms=known_ms, timeframe="1h",
        runs=calendar.runs(series.opened_ms, BAR_MS, "fx"),
    ).values  # fmt: skip
    tested, covered, widths = [], [], []
    for begin in range(steps.first, num - horizon, steps.test):
        border = begin - steps.calibration
        profile = SeasonalProfile(timeframe_ms=BAR_MS)
        if has_season:
            profile = SeasonalProfile.fit(series.opened_ms[:border], returns[:border], BAR_MS)
        volatility = seasonal_volatility(profile, series.opened_ms, returns, horizon=horizon) * horizon**0.5
        usable = np.isfinite(labels) & np.isfinite(volatility)
        calibration = border + np.flatnonzero(usable[border : begin - horizon])
        decoder = ForecastDecoder.fit(
            np.zeros((len(calibration), 1)), targets=[target], names=[target.name], quantiles=(),
            labels_N=labels[calibration], label_scale_N=np.full(len(calibration), np.std(labels[calibration])),
            volatility_N=volatility[calibration],
        )  # fmt: skip
        ends = begin + np.flatnonzero(usable[begin : begin + steps.test])
        rows = DecodedRows(decoder, np.zeros((len(ends), 1)), labels[ends], np.ones(len(ends)), volatility[ends])
        _, lower, upper = rows.bounds()
        tested.append(known_ms[ends])
        covered.append((lower <= labels[ends]) & (labels[ends] <= upper))
        widths.append(upper - lower)
    return Tested(
        series.name, horizon, np.concatenate(covered), np.concatenate(tested), float(np.mean(np.concatenate(widths)))
    )


def real_hours() -> Series:
    """A year of EUR/USD, read by the service from the package's own file."""
    source = files("gym_anytrading").joinpath(*REAL_FILE)
    with TemporaryDirectory() as folder:
        (Path(folder) / "EURUSD_1h.csv").write_bytes(source.read_bytes())
        store = LocalFeatureStore(FolderBars(Path(folder)))
        table = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"])[0]
    return Series(REAL, table.opened_ms, np.asarray(table.columns["close"]), REAL_STEPS)


def simulated_centres(seed: int, number: int, num_bars: int) -> Series:
    """Hourly bars that move by three centres' own clocks."""
    chance = np.random.default_rng([seed, number])
    first_ms = int(calendar.week_opening(int(np.datetime64("2012-03-05", "ms").astype(np.int64))))
    hours = first_ms + BAR_MS * np.arange(3 * num_bars // 2)
    opened_ms = hours[calendar.is_open(hours)][:num_bars]
    log_season = sum(
        _working_day(opened_ms, zone, chance) for zone in ("Asia/Tokyo", "Europe/London", "America/New_York")
    )
    shocks = chance.standard_t(5, num_bars) / np.sqrt(5 / 3)
    shocks += 6 * chance.standard_normal(num_bars) * (chance.random(num_bars) < 0.001)
    drift = np.fromiter(_wandering(chance, num_bars), dtype=np.float64, count=num_bars)
    close = np.exp(np.cumsum(0.0008 * np.exp(log_season + drift) * shocks))
    return Series(f"simulated centres {number + 1}", opened_ms, close, SIMULATED_STEPS)


def _working_day(opened_ms: Ints, zone: str, chance: np.random.Generator) -> Floats:
    """A centre's log season: a morning, a noon and an afternoon of its own height, nothing at night."""
    offsets_D = {day: _offset_hours(day, zone) for day in np.unique(opened_ms // calendar.DAY_MS).tolist()}
    offset_N = np.array([offsets_D[day] for day in (opened_ms // calendar.DAY_MS).tolist()])
    local_N = (opened_ms // BAR_MS + offset_N) % 24
    morning, noon, afternoon = chance.uniform([0.4, 0.0, 0.2], [1.0, 0.4, 0.8])
    return np.select(
        [(local_N >= a) & (local_N < b) for a, b in ((8, 11), (11, 14), (14, 17))], [morning, noon, afternoon]
    )


def _offset_hours(day: int, zone: str) -> int:
    """Of noon of a day since 1970: clocks change on Sundays, when nobody trades."""
    noon = np.datetime64(day, "D").astype("datetime64[s]").astype(object).replace(hour=12, tzinfo=ZoneInfo("UTC"))
    offset = noon.astimezone(ZoneInfo(zone)).utcoffset()
    return int(offset.total_seconds() // 3600)


def _wandering(chance: np.random.Generator, num: int) -> Iterator[float]:
    """A log volatility that reverts to its mean within a week or two."""
    at, noise = 0.0, 0.04 * chance.standard_normal(num)
    for each in noise.tolist():
        at = 0.99 * at + each
        yield at


def _row(seasonal: Tested, plain: Tested) -> list[str]:
    def blocks(each: Tested) -> str:
        return " / ".join(f"{100 * share:.1f}" for share in each.by_block)

    return [
        seasonal.name,
        str(seasonal.horizon),
        str(len(seasonal.covered)),
        f"{100 * seasonal.covered.mean():.1f} %",
        blocks(seasonal),
        str(seasonal.failed_hours),
        blocks(plain),
        str(plain.failed_hours),
    ]
