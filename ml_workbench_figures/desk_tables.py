"""Desk tables: a desk report as tables of words, the same ones in the HTML report, on the page and on the terminal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ml_workbench_figures.captions import spelt

if TYPE_CHECKING:
    from ml_workbench_service.contracts.desk_report import DeskReport, Estimate, Slice

NONE = "-"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class DeskTable:
    """One table; the first cell of a row names it."""

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def desk_tables(report: "DeskReport") -> tuple[DeskTable, ...]:
    """Every table that the report has something for."""
    found = (
        DeskTable(
            "statistics", "The account, daily simple net returns, 252 days a year", ("", "value"), _money(report)
        ),
        DeskTable("drawdowns", "Deepest drawdowns of the account", DRAWDOWN_HEADS, _drawdowns(report)),
        DeskTable("months", "Months: net log return", ("year", *MONTHS, "year's"), _months(report)),
        DeskTable("capacity", "What spread the decisions bear", ("spread", "net", "Sharpe ratio"), _capacity(report)),
        DeskTable("ranking", "Rank correlation of forecast and what came", RANKING_HEADS, _ranking(report)),
        DeskTable("quantiles", "What came after each fifth of the forecasts", FIFTH_HEADS, _quantiles(report)),
        DeskTable("slices", "By symbol, session and regime", SLICE_HEADS, tuple(map(_slice, report.slices))),
        DeskTable("stability", "Eight spans of the test part", SLICE_HEADS, _stability(report)),
        DeskTable("classes", "Classes", CLASS_HEADS, _classes(report)),
    )
    return tuple(each for each in found if each.rows)


DRAWDOWN_HEADS = ("peak", "depth", "trough", "recovered", "days")
RANKING_HEADS = ("", "of that bar", "up to it")
FIFTH_HEADS = ("fifth", "mean forecast", "mean outcome", "rows")
SLICE_HEADS = ("", "rows", "rank correlation", "p adjusted", "side right", "net", "gross", "in the market")
CLASS_HEADS = ("class", "came", "precision", "recall")


def _money(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    rows: list[tuple[str, ...]] = []
    if (found := report.returns) is not None:
        rows += [
            ("Cumulative return", _percent(found.cumulative_return)),
            ("Growth a year", _percent(found.cagr)),
            ("Volatility a year", _percent(found.volatility)),
            ("Sharpe ratio", _number(found.sharpe)),
            ("Sortino ratio", _number(found.sortino)),
            ("Calmar ratio", _number(found.calmar)),
            ("Omega ratio", _number(found.omega)),
            ("Largest drawdown", _percent(found.max_drawdown)),
            ("Skewness and excess kurtosis", f"{_number(found.skewness)} and {_number(found.excess_kurtosis)}"),
            ("5 % quantile of a day, and mean beyond", f"{_percent(found.value_at_risk)} and "
             f"{_percent(found.conditional_value_at_risk)}"),
            ("Tail ratio", _number(found.tail_ratio)),
            ("Stability", _number(found.stability)),
            ("Best and worst day", f"{_percent(found.best_day)} and {_percent(found.worst_day)}"),
            ("Days up", _percent(found.share_of_days_up, 0)),
        ]  # fmt: skip
    if (traded := report.turnover) is not None:
        sides = [_percent(each, 0) for each in (traded.share_long, traded.share_short, traded.share_flat)]
        rows += [
            ("Turnover", f"{traded.total:,.1f}, {_number(traded.per_year)} a year"),
            ("Trades", f"{traded.num_trades:,}"),
            ("Mean holding time", f"{_number(traded.mean_holding_bars)} bars"),
            ("Long, short, flat", " · ".join(sides)),
        ]
    return tuple(rows)


def _drawdowns(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            f"{each.peak_at:%Y-%m-%d}", _percent(each.depth, 2), f"{each.trough_at:%Y-%m-%d}",
            "not yet" if each.recovered_at is None else f"{each.recovered_at:%Y-%m-%d}", f"{each.num_days:,}",
        )
        for each in report.drawdowns
    )  # fmt: skip


def _months(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    years: dict[int, dict[int, float]] = {}
    for each in report.months:
        years.setdefault(each.year, {})[each.month] = each.net
    return tuple(
        (
            str(year),
            *(_percent(net.get(month), 1) if month in net else "" for month in range(1, 13)),
            _percent(sum(net.values()), 1),
        )
        for year, net in years.items()
    )


def _capacity(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    if report.capacity is None:
        return ()
    points = [
        (f"{each.spread_multiple:g} of what was charged", _percent(each.net_log_return, 2), _number(each.sharpe))
        for each in report.capacity.points
    ]
    even = report.capacity.break_even_multiple
    return (*points, ("nothing is left at", NONE if even is None else f"{even:.2f} of what was charged", ""))


def _ranking(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    if report.ranking is None:
        return ()
    rows = [("target", _estimate(report.ranking.rank_ic), "")] if report.ranking.rank_ic else []
    return (
        *rows,
        *(
            (f"bar {each.bars}", _estimate(each.of_the_bar), _estimate(each.up_to_it))
            for each in report.ranking.decay
        ),
    )  # fmt: skip


def _quantiles(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    if report.quantiles is None:
        return ()
    spread = report.quantiles.spread
    return (
        *(
            (str(each.number), f"{each.mean_forecast:.3g}", _estimate(each.outcome), f"{each.outcome.num_rows:,}")
            for each in report.quantiles.quantiles
        ),
        ("highest less lowest", "", _estimate(spread), f"{spread.num_rows:,}"),
    )


def _slice(each: "Slice") -> tuple[str, ...]:
    return (
        spelt(each.name), f"{each.num_rows:,}", _estimate(each.rank_ic), _number(each.adjusted_p_value),
        _percent(each.share_right), _percent(each.net, 2), _percent(each.gross, 2), _percent(each.share_in_market, 0),
    )  # fmt: skip


def _stability(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    if report.stability is None:
        return ()
    spans = ((f"{each.first:%Y-%m-%d} to {each.last:%Y-%m-%d}", each) for each in report.stability.periods)
    change = report.stability.change_of_ic
    rows: Iterator[tuple[str, ...]] = ((name, *_slice(each)[1:]) for name, each in spans)
    last = ("second half less first", f"{change.num_rows:,}", _estimate(change), *[""] * 5) if change else None
    return (*rows, *_if_any(last))


def _classes(report: "DeskReport") -> tuple[tuple[str, ...], ...]:
    if report.classes is None:
        return ()
    found = report.classes
    return (
        *(
            (spelt(each.name), _percent(each.share), _percent(each.precision), _percent(each.recall))
            for each in found.classes
        ),
        ("right", _percent(found.accuracy), "most frequent", _percent(found.most_frequent)),
        ("Brier score", _number(found.brier), "of frequencies", _number(found.brier_of_frequencies)),
        ("reliability error", _percent(found.reliability_error), "", ""),
    )


def _if_any(row: tuple[str, ...] | None) -> Iterable[tuple[str, ...]]:
    return () if row is None else (row,)


def _estimate(found: "Estimate | None") -> str:
    """Value and error in as many digits as the error is worth."""
    if found is None or found.value is None:
        return NONE
    return f"{found.value:.3g}" if found.error is None else f"{found.value:.3g} ± {found.error:.2g}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:.{digits}%}"
