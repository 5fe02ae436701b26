"""Interval coverage, live: whether nine of ten stay covered in calm and storm; MAPIE beside it on the same residuals.

Residuals are those of the random walk over one bar and over four, on simulated series of `studies.series` (GARCH
with jumps, with regimes, with both) and on the ECB's daily rates. Each series is walked in blocks: calibrate on some
bars, then be live on the next, which are twice as many.

- split: MAPIE's split conformal intervals on the absolute residual, in an environment of its own. Before anything else
  our own radius on unscaled residuals must equal its half-width.
- published: split conformal on |residual| ÷ EWMA volatility, as a card shows for the test part.
- live: the same, scaled by the service's own `VersionIntervals`, which sees one bar's price after the other.

Terciles are of each block's bars by another ex-ante volatility than the interval's own. Widths are means over all bars.
The goals are for the service's live intervals, over all simulated and all real series, for each horizon; groups stand
beside.

Legend: N bars; y the log return over the horizon that begins at a bar.
"""

import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.learning.calibration.conformal import INTERVAL_LEVEL, ResidualDistribution
from ml_workbench_service.market.targets import ewma_volatility
from ml_workbench_service.serving.interval_outcomes import IntervalSeries, StatedInterval, VersionIntervals
from studies.series import FIRST_MS, KINDS, null_series
from studies.tables import Goal, Run, Table
from tools.peer_environments import python_with

PEER = "mapie==1.6.*"
MOST_DIFFERENCE = 1e-12
BAR_MS = TIMEFRAMES_MS["1h"]
PAIRS = ("EUR/USD", "GBP/USD", "USD/JPY")
HORIZONS = (1, 4)
NUM_SERIES = 5
"""Of each simulated kind."""
NUM_BARS = 12_000
FIRST = 1200
"""Bars before the first block: what a training would have learnt from."""
SIZES = {"daily": (600, 1200), "intraday": (1200, 2400)}
"""Bars to calibrate on, and live bars, of a block."""
SIMULATED, REAL = "all simulated", "all real"
NUM_JUDGED = 60
"""Bars whose mean square is the volatility that the terciles are of."""
MOST_GAP, MOST_SPREAD, MOST_WIDTH = 0.015, 0.35, 1.10
"""Of the live intervals: from the level; of the terciles, and of the width, in split conformal ones."""

ASK_PEER = """
import sys
import numpy as np
from mapie.regression import SplitConformalRegressor
from sklearn.dummy import DummyRegressor

with np.load(sys.argv[1]) as blocks:
    reach = []
    zero = DummyRegressor(strategy="constant", constant=0.0).fit(np.zeros((1, 1)), np.zeros(1))
    for number in range(len(blocks.files)):
        residuals = blocks[f"arr_{number}"]
        mapie = SplitConformalRegressor(zero, confidence_level=float(sys.argv[3]), prefit=True)
        mapie.conformalize(np.zeros((len(residuals), 1)), residuals)
        _, ends = mapie.predict_interval(np.zeros((1, 1)))
        reach.append(ends.ravel())
np.save(sys.argv[2], np.array(reach))
"""


@dataclass(frozen=True)
class Block:
    """One segment of one series: residuals to calibrate on, and the live ones with what was known before each."""

    group: str
    horizon: int
    calibration: Floats
    calibration_scale: Floats
    close: Floats  # (N,)
    y: Floats  # (N,)
    scale: Floats  # (N,) ex-ante volatility over the horizon
    judging: Floats  # (N,) another ex-ante volatility


@dataclass(frozen=True)
class Covered:
    """Whether each live residual lay inside, and how wide the intervals were."""

    inside: np.ndarray
    half_width: Floats


def tables(run: Run) -> list[Table]:
    """One row for each group of series and horizon; the goals hold for the worst of the joint rows."""
    found = rows(run.seed, num_series=run.size(NUM_SERIES, quick=1), num_bars=run.size(NUM_BARS, quick=5_000))
    joint = [each for each in found if each["group"] in (SIMULATED, REAL)]
    goals = [
        Goal(f"intervals: {name}", max(of(each) for each in joint), most, at_most=True)
        for name, of, most in (
            ("coverage apart from 0.9", lambda each: abs(each["live_coverage"] - INTERVAL_LEVEL), MOST_GAP),
            ("spread over terciles ÷ split's", lambda each: each["live_spread_ratio"], MOST_SPREAD),
            ("width ÷ split's", lambda each: each["live_width_ratio"], MOST_WIDTH),
        )
    ]
    caption = (
        "Residuals of the random walk over one bar and over four, in blocks of calibration and live bars. *Published* "
        "is the interval of the test part's card, *live* the one that learns from outcomes. Terciles by another "
        f"volatility than the intervals' own ({NUM_JUDGED} bars); spread is the largest less the smallest of the three."
    )
    columns = [
        "series", "bars ahead", "blocks", "split: coverage (terciles)", "published: coverage (terciles)",
        "live: coverage (terciles)", "spread ÷ split's: published, live", "width ÷ split's: published, live",
    ]  # fmt: skip
    return [Table("intervals", "Intervals", caption, columns, [_row(each) for each in found], goals)]


def rows(seed: int, *, num_series: int, num_bars: int) -> list[dict[str, Any]]:
    """One row for each group of series and horizon, and for all simulated and all real ones.

    Args:
        seed: of the simulated series.
        num_series: of each simulated kind.
        num_bars: of each simulated series.

    Raises:
        RuntimeError: our split conformal radius is not MAPIE's.
    """
    blocks = [
        block
        for group, kind, close in series(seed, num_series=num_series, num_bars=num_bars)
        for horizon in HORIZONS
        for block in blocks_of(group, close, horizon=horizon, sizes=SIZES[kind])
    ]
    grouped: dict[tuple[str, int], list[tuple[Block, float]]] = defaultdict(list)
    for block, reach in zip(blocks, split_conformal(blocks), strict=True):
        grouped[block.group, block.horizon].append((block, reach))
        grouped[SIMULATED if block.group in KINDS else REAL, block.horizon].append((block, reach))
    return [_figures(group, members) for (group, _), members in sorted(grouped.items())]


def series(seed: int, *, num_series: int, num_bars: int) -> Iterator[tuple[str, str, Floats]]:
    """Group, daily or intraday, and closes."""
    for number in range(num_series * len(KINDS)):
        simulated = null_series(num_bars, seed=seed, number=number)
        yield simulated.kind, "intraday", simulated.close
    store = LocalFeatureStore(SampleRates())
    for table in store.fetch(PAIRS, "1d", start_ms=None, end_ms=None, features=["close"]):
        yield "ECB daily", "daily", np.asarray(table.columns["close"])


def blocks_of(group: str, close: Floats, *, horizon: int, sizes: tuple[int, int]) -> Iterator[Block]:
    """Calibration and live segments, one after the other, without an overlap of live ones; labels purged between."""
    logs = np.log(close)
    y = logs[horizon:] - logs[:-horizon]
    moves = np.diff(logs, prepend=logs[0])[: len(y)]
    scale = ewma_volatility(close)[: len(y)] * horizon**0.5
    usable = np.isfinite(scale)
    scale = np.where(usable, scale, np.nanmedian(scale))
    judging = _rolling(moves**2, NUM_JUDGED) ** 0.5
    num_calibration, num_live = sizes
    for begin in range(FIRST, len(y) - num_calibration - num_live + 1, num_live):
        border = begin + num_calibration
        past, live = slice(begin, border - horizon + 1), slice(border, border + num_live)
        yield Block(group, horizon, y[past], scale[past], close[live], y[live], scale[live], judging[live])


def split_conformal(blocks: Sequence[Block]) -> list[float]:
    """MAPIE's half-widths, once ours on the same residuals are found to be the same."""
    python = python_with("mapie", PEER)
    with TemporaryDirectory() as name:
        sent, received = Path(name) / "residuals.npz", Path(name) / "intervals.npy"
        np.savez(sent, *(block.calibration for block in blocks))
        subprocess.run([str(python), "-c", ASK_PEER, str(sent), str(received), str(INTERVAL_LEVEL)], check=True)
        ends = np.load(received)
    reaches = []
    for block, (lower, upper) in zip(blocks, ends, strict=True):
        ours = ResidualDistribution.fit(block.calibration, np.ones(len(block.calibration)))
        if ours is None or max(abs(upper - ours.radius), abs(lower + ours.radius)) > MOST_DIFFERENCE:
            raise RuntimeError(f"split conformal intervals differ: MAPIE ({lower}, {upper}), ours {ours}")
        reaches.append(float(upper))
    return reaches


def published(block: Block, radius: float) -> Covered:
    """Without anything learnt from outcomes."""
    half_width = radius * block.scale
    return Covered(np.abs(block.y) <= half_width, half_width)


def live(block: Block, radius: float) -> Covered:
    """Bar after bar through the service's own accounting: first what the price makes known, then the next interval.

    All bars are an hour apart, without closures: the residuals reach over them too.
    """
    target: Target = parse_target(f"log_return_{block.horizon}")
    state, series = VersionIntervals("evaluation", "1.0.0", ""), IntervalSeries()
    half_width = np.empty(len(block.y))
    for number, (price, scale) in enumerate(zip(block.close.tolist(), block.scale.tolist(), strict=True)):
        as_of_ms = FIRST_MS + number * BAR_MS
        state.price(series, target, as_of_ms=as_of_ms, price=price, bar_ms=BAR_MS)
        widening = series.by_volatility.widening(scale)
        reach = radius * scale * widening.factor
        stated = StatedInterval(
            as_of_ms + block.horizon * BAR_MS, price, 0.0, 0, -reach, reach, INTERVAL_LEVEL, widening.lean, True
        )
        series.scale = scale
        state.expect(series, stated, as_of_ms=as_of_ms, bar_ms=BAR_MS, horizon=block.horizon)
        half_width[number] = reach
    return Covered(np.abs(block.y) <= half_width, half_width)


def _figures(group: str, members: Sequence[tuple[Block, float]]) -> dict[str, Any]:
    """Figures over all blocks of a group: each block counts the same."""
    found: dict[str, list[Covered]] = {"split": [], "published": [], "live": []}
    for block, reach in members:
        distribution = ResidualDistribution.fit(block.calibration, block.calibration_scale)
        assert distribution is not None, "a block has hundreds of rows"
        found["split"].append(Covered(np.abs(block.y) <= reach, np.full(len(block.y), reach)))
        found["published"].append(published(block, distribution.radius))
        found["live"].append(live(block, distribution.radius))
    blocks = [block for block, _ in members]
    row: dict[str, Any] = {"group": group, "horizon": blocks[0].horizon, "num_blocks": len(blocks)}
    for name, covered in found.items():
        row[f"{name}_coverage"] = float(np.mean([each.inside.mean() for each in covered]))
        row[f"{name}_terciles"] = _terciles(blocks, covered).tolist()
    for name in ("published", "live"):
        ours, split = (float(np.ptp(_terciles(blocks, found[each]))) for each in (name, "split"))
        row[f"{name}_spread_ratio"] = ours / split
        widths = [float(np.mean([each.half_width.mean() for each in found[of]])) for of in (name, "split")]
        row[f"{name}_width_ratio"] = widths[0] / widths[1]
    return row


def _terciles(blocks: Sequence[Block], covered: Sequence[Covered]) -> Floats:
    """(3,) coverage where the judging volatility was low, middling and high."""
    shares = []
    for block, each in zip(blocks, covered, strict=True):
        tercile: Ints = np.digitize(block.judging, np.quantile(block.judging, [1 / 3, 2 / 3]))
        shares.append([each.inside[tercile == number].mean() for number in range(3)])
    return np.asarray(np.mean(shares, axis=0))


def _rolling(values: Floats, length: int) -> Floats:
    """(N,) mean of the last `length` values up to each; of all so far at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - length, 0)
    return np.asarray(np.maximum(sums[ends] - sums[begins], 0.0) / (ends - begins))


def _row(found: dict[str, Any]) -> list[str]:
    return [
        str(found["group"]),
        str(found["horizon"]),
        str(found["num_blocks"]),
        *(_covered(found, name) for name in ("split", "published", "live")),
        f"{found['published_spread_ratio']:.2f}, {found['live_spread_ratio']:.2f}",
        f"{found['published_width_ratio']:.2f}, {found['live_width_ratio']:.2f}",
    ]


def _covered(found: dict[str, Any], name: str) -> str:
    terciles = " / ".join(f"{100 * each:.1f}" for each in found[f"{name}_terciles"])
    return f"{100 * found[f'{name}_coverage']:.1f} % ({terciles})"
