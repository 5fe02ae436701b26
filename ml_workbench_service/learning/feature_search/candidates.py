"""Candidate features: what a quant would try first, written as expressions.

From the features that a store describes, over a grid of parameters: indicators as they are, returns, ratios of
levels, z-scores, differences, lags, the bar's shape, the calendar. All are `stationary`: a level drifts, so alone it
would look informative wherever the target's mean or variance drifts with it; it enters as a ratio, return or z-score.

Nothing is drawn by chance. Groups take turns and each gives its plainest candidate first, so that a smaller bound keeps
the plainest of every group and a larger one only adds to them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import FeatureDescription
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.features.expressions.parser import parse

MAX_CANDIDATES = 300
NOT_EVERYWHERE = ("volume", "spread")
"""Columns that a folder's store describes although some files lack them."""
_SAID_BY_OTHERS = {"return", "roc", "mom", "log_return", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos"}
"""Words whose content `log_return(close, bars)` and the grammar's own calendar hold for every store."""
_SIDES = {"open", "high", "low", "close"}


@dataclass(frozen=True)
class Grid:
    """Parameters to try, in bars.

    Attributes:
        periods: of indicators; each keeps its default too.
        spans: of returns.
        windows: of z-scores and of statistics of returns.
        steps: of lags and differences.
    """

    periods: tuple[int, ...] = (7, 28, 56)
    spans: tuple[int, ...] = (1, 2, 4, 8, 24, 48, 120)
    windows: tuple[int, ...] = (24, 96)
    steps: tuple[int, ...] = (1, 2, 4)


def candidates(
    available: Sequence[FeatureDescription],
    *,
    timeframe: str,
    grid: Grid | None = None,
    has_range: bool = True,
    without: Collection[str] = NOT_EVERYWHERE,
    max_candidates: int = MAX_CANDIDATES,
) -> list[Expression]:
    """Different expressions by their canonical text, at most `max_candidates`, the plainest of each group first.

    Args:
        available: what the feature store describes.
        timeframe: of the bars; daily bars have no hour.
        grid: parameters to try.
        has_range: whether high and low were observed; else nothing that reads them is tried.
        without: columns not to use.
        max_candidates: the bound.
    """
    grid = grid or Grid()
    words = _Words([each for each in available if has_range or not each.needs_range], grid, without)
    groups: list[Iterable[str]] = [
        words.bare,
        [f"log_return(close, {span})" for span in grid.spans],
        words.indicators,
        _level_ratios(words),
        _scores(words, grid),
        _changes(words, grid),
        _lags(words, grid),
        _shapes() if has_range else (),
        _calendar(timeframe),
    ]
    texts = (text for turn in zip_longest(*groups) for text in turn if text is not None)
    found: dict[str, Expression] = {}
    for text in texts:
        expression = parse(text)
        found.setdefault(expression.text, expression)
    return list(found.values())[:max_candidates]


class _Words:
    """The store's features sorted by what can be done with them, with parameters filled in."""

    def __init__(self, available: Sequence[FeatureDescription], grid: Grid, without: Collection[str]) -> None:
        usable = [each for each in available if not {each.name, _word(each)} & (set(without) | _SAID_BY_OTHERS)]
        stationary = [each for each in usable if each.kind == "stationary"]
        levels = [each for each in usable if each.kind == "level" and each.name not in _SIDES]
        self.plain = [each.example for each in stationary]
        """One name of each stationary feature: its default."""
        self.bare = [each.name for each in stationary if not each.parameters]
        self.indicators = self.plain + [name for each in stationary for name in _filled(each, grid)[1:]]
        self.levels = [_filled(each, grid) for each in levels if each.parameters]
        self.own_levels = [each.name for each in levels if not each.parameters]


def _word(description: FeatureDescription) -> str:
    return description.name.partition("_{")[0]


def _filled(description: FeatureDescription, grid: Grid) -> list[str]:
    """The default's name, then those of the grid's periods within bounds."""
    if not description.parameters:
        return [description.name]
    parameter = description.parameters[0]
    periods = [each for each in grid.periods if parameter.minimum <= each <= parameter.maximum]
    return list(dict.fromkeys([description.example, *(f"{_word(description)}_{each}" for each in periods)]))


def _level_ratios(words: _Words) -> list[str]:
    """The close over each level, each level over its own next longer one, and the open."""
    to_close = [f"close / {name}" for names in words.levels for name in names]
    between = [f"{first} / {second}" for names in words.levels for first, second in pairwise(names)]
    return [*to_close, *between, "close / open"]


def _scores(words: _Words, grid: Grid) -> list[str]:
    """Z-scores of levels and indicators, and the returns' mean and volatility against their own."""
    scores = [f"zscore({name}, {each})" for name in ("close", *words.own_levels) for each in grid.windows]
    step = "log_return(close, 1)"
    scores += [f"mean({step}, {each}) / std({step}, {each})" for each in grid.windows]
    scores += [f"std({step}, {short}) / std({step}, {long})" for short, long in pairwise(grid.windows)]
    return scores + [f"zscore({name}, {each})" for each in grid.windows for name in words.plain]


def _changes(words: _Words, grid: Grid) -> list[str]:
    changes = [f"diff({name}, {step})" for step in grid.steps for name in words.plain]
    return [f"log_return({name}, {span})" for name in words.own_levels for span in grid.spans] + changes


def _lags(words: _Words, grid: Grid) -> list[str]:
    return [f"lag({text}, {step})" for step in grid.steps for text in ("log_return(close, 1)", *words.plain)]


def _shapes() -> list[str]:
    """Where the close lies in the bar, how long the bar is, and its wicks."""
    return [
        "(close - low) / (high - low)",
        "(high - low) / close",
        "(close - open) / (high - low)",
        "high / lag(close, 1)",
        "low / lag(close, 1)",
        "(high - low) / mean(high - low, 24)",
    ]


def _calendar(timeframe: str) -> list[str]:
    units = ["weekday", "month", "year"]
    if TIMEFRAMES_MS[timeframe] < TIMEFRAMES_MS["1d"]:
        units.insert(0, "hour")
    return [f"{wave}_{unit}()" for unit in units for wave in ("sin", "cos")]
