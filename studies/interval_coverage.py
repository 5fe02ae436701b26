"""Interval coverage as a table: `studies.intervals` measures, this says what it must show.

The goals are for the service's live intervals, over all simulated and all real series, for each horizon; groups stand
beside.
"""

from typing import Any

from studies.intervals import MAIN, NUM_BARS, NUM_SERIES, REAL, SIMULATED, rows
from studies.tables import Goal, Run, Table

LEVEL = 0.9
MOST_GAP = 0.015
MOST_SPREAD = 0.35
MOST_WIDTH = 1.10
SPREAD = f"live_spread_ratio_{MAIN.replace(' ', '_')}"


def tables(run: Run) -> list[Table]:
    """One row for each group of series and horizon; the goals hold for the worst of the joint rows."""
    found = rows(run.seed, num_series=run.size(NUM_SERIES, quick=1), num_bars=run.size(NUM_BARS, quick=5_000))
    joint = [each for each in found if each["group"] in (SIMULATED, REAL)]
    goals = [
        Goal(
            "intervals: coverage apart from 0.9",
            max(abs(each["live_coverage"] - LEVEL) for each in joint),
            MOST_GAP,
            at_most=True,
        ),
        Goal(
            "intervals: spread over terciles ÷ split's", max(each[SPREAD] for each in joint), MOST_SPREAD, at_most=True
        ),
        Goal("intervals: width ÷ split's", max(each["live_width_ratio"] for each in joint), MOST_WIDTH, at_most=True),
    ]
    caption = (
        "Residuals of the random walk over one bar and over four, in blocks of calibration and live bars. *Published* "
        "is the interval of the test part's card, *live* the one that learns from outcomes. Terciles by "
        f"another volatility than the intervals' own ({MAIN}); spread is the largest less the smallest of the three."
    )
    columns = [
        "series", "bars ahead", "blocks", "split: coverage (terciles)", "published: coverage (terciles)",
        "live: coverage (terciles)", "spread ÷ split's: published, live", "width ÷ split's: published, live",
    ]  # fmt: skip
    return [Table("intervals", "Intervals", caption, columns, [_row(each) for each in found], goals)]


def _row(found: dict[str, Any]) -> list[str]:
    return [
        str(found["group"]),
        str(found["horizon"]),
        str(found["num_blocks"]),
        *(_covered(found, name) for name in ("split", "published", "live")),
        f"{found[SPREAD.replace('live', 'published')]:.2f}, {found[SPREAD]:.2f}",
        f"{found['published_width_ratio']:.2f}, {found['live_width_ratio']:.2f}",
    ]


def _covered(found: dict[str, Any], name: str) -> str:
    terciles = " / ".join(f"{100 * each:.1f}" for each in found[f"{name}_terciles"])
    return f"{100 * found[f'{name}_coverage']:.1f} % ({terciles})"
