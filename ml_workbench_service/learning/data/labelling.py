"""Labelling: from fetched tables to rows with labels, one column for each target, numbers and classes alike.

A row has labels only where all its targets have one; it is known when the last of them is. What is fitted (the market
regimes' rule, the seasonal profile of volatility, and so barriers) is fitted on bars known by the end of the training
part, once `windows.build` has drawn the borders; until then barriers lie at the volatility without a season, which
tells as well which rows have a label.

Legend: N bars of one symbol, F features, K targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, Costs, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.learning.data.splits import Split
from ml_workbench_service.learning.data.windows import SymbolRows
from ml_workbench_service.market import calendar
from ml_workbench_service.market.class_labels import (
    break_even,
    direction_labels,
    price_moves,
    regime_labels,
    triple_barrier_labels,
)
from ml_workbench_service.market.costs import session_spread
from ml_workbench_service.market.features.tables import SPREAD
from ml_workbench_service.market.fills import is_near_roll, open_prices, open_spreads
from ml_workbench_service.market.regimes import RegimeRule, regime_features
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, seasonal_volatility
from ml_workbench_service.market.targets import Labels, ewma_volatility, label, log_returns

NO_SIDE = "primary_has_no_side"


@dataclass
class Labelling:
    """The rows of all symbols, why some have no label, and the rules that were fitted.

    Attributes:
        rows: one entry a symbol.
        num_dropped: rows without label, by reason, over all symbols and targets.
        barrier_width: `label.k` of the request.
        by_uniqueness: whether rows count by how much of their labels' time no other row tells about.
        regimes: each symbol's rule, once `finish` has been called; empty without a regime among the targets.
        profiles: each symbol's seasonal profile, once `finish` has been called; empty for daily bars.
        sides: of meta-labelling, each symbol's (N,) side of the primary, once `follow` has been called.
    """

    tables: Sequence[FeatureTable]
    targets: tuple[Target, ...]
    rows: list[SymbolRows]
    num_dropped: dict[str, int]
    barrier_width: float = 1.0
    by_uniqueness: bool = False
    regimes: dict[str, RegimeRule] = field(default_factory=dict)
    profiles: dict[str, SeasonalProfile] = field(default_factory=dict)
    sides: tuple[Ints, ...] = ()

    def follow(self, sides: Sequence[Ints]) -> None:
        """Makes labels of `follow` out of directions: 1 where the primary's side paid for its round trip, 0 where not.

        Rows at which the primary has no side have no label, and are counted.

        Args:
            sides: (N,) of each symbol: -1, 0 or 1.

        Raises:
            DataValidationError: there is no side at all.
        """
        if not any(side_N.any() for side_N in sides):
            raise DataValidationError.at(
                "body.meta.primary",
                "the primary states no side at any bar of this range (a forecast under the round-trip cost is `hold`): "
                "there is nothing to follow; name another version",
                code="no_sides",
            )
        self.sides = tuple(sides)
        for number, side_N in enumerate(sides):
            rows = self.rows[number]
            moved_N, has_outcome_N = rows.labels_NK[:, 0].copy(), np.isfinite(rows.labels_NK[:, 0])
            num_without = int((has_outcome_N & (side_N == 0)).sum())
            self.num_dropped[NO_SIDE] = self.num_dropped.get(NO_SIDE, 0) + num_without
            paid_N = np.where(moved_N - 1.0 == side_N, 1.0, 0.0)
            rows.labels_NK[:, 0] = np.where(has_outcome_N & (side_N != 0), paid_N, np.nan)
            self.rows[number] = replace(rows, has_outcome_N=has_outcome_N)

    def finish(self, split: Split) -> list[SymbolRows]:
        """Each symbol's rows with regimes, seasonal volatility and barriers, their rules fitted on the training part.

        Raises:
            DataValidationError: too few bars for a rule.
        """
        finished = []
        for table, rows in zip(self.tables, self.rows, strict=True):
            known_N = split.learnt(table.available_at_ms)
            rows = replace(
                rows, labels_NK=rows.labels_NK.copy(), bar_volatility_N=self._volatility(table, rows, known_N)
            )
            decided = []
            for column, target in enumerate(self.targets):
                if target.measure == "market_regime":
                    rows.labels_NK[:, column] = self._regimes(table, rows, target, known_N)
                barriers = None
                if target.measure == "triple_barrier":
                    barriers = _barriers(target, table, rows, width=self.barrier_width)
                    rows.labels_NK[:, column] = barriers.values
                decided.append(_decided(target, barriers, len(table)))
            finished.append(_spanned(rows, self.targets, decided) if self.by_uniqueness else rows)
        return finished

    def bar_again(self) -> None:
        """Barriers at each row's present volatility, as a published version has it: nothing is fitted."""
        for table, rows in zip(self.tables, self.rows, strict=True):
            for column, target in enumerate(self.targets):
                if target.measure == "triple_barrier":
                    rows.labels_NK[:, column] = _barriers(target, table, rows, width=self.barrier_width).values

    def _volatility(self, table: FeatureTable, rows: SymbolRows, known_N: Bools) -> Floats:
        """Seasonal on intraday bars, over the headline's horizon."""
        timeframe_ms = TIMEFRAMES_MS[table.timeframe]
        if timeframe_ms >= calendar.DAY_MS:
            return rows.bar_volatility_N
        returns_N = log_returns(rows.close_N)
        profile = SeasonalProfile.fit(table.opened_ms[known_N], returns_N[known_N], timeframe_ms)
        self.profiles[table.symbol] = profile
        horizon = self.targets[0].horizon if self.targets else 1
        return seasonal_volatility(profile, table.opened_ms, returns_N, horizon=horizon)

    def _regimes(self, table: FeatureTable, rows: SymbolRows, target: Target, known_N: Bools) -> Floats:
        trend_N, volatility_N = regime_features(rows.close_N, rows.runs_N)
        rule = RegimeRule.fit(trend_N[known_N], volatility_N[known_N])
        self.regimes[table.symbol] = rule
        classes_N = rule.classify(trend_N, volatility_N)
        return regime_labels(target, _moves(target, table, rows), classes_N=classes_N).values


def _decided(target: Target, labels: Labels | None, num: int) -> Ints:
    """(N,) bars from a row to the one that decides its label: the horizon's last, or the first to touch a barrier."""
    if labels is None or labels.decided_after_N is None:
        return np.full(num, target.reach)
    return target.delay + labels.decided_after_N


def _spanned(rows: SymbolRows, targets: tuple[Target, ...], decided: Sequence[Ints]) -> SymbolRows:
    """The rows with the places of the bars that their labels are about, from the first to the last of all targets."""
    if not targets:
        return rows
    places_N = np.arange(len(rows.labels_NK))
    first = 1 + min(target.delay for target in targets)
    return replace(rows, label_spans_N2=np.column_stack([places_N + first, places_N + np.max(decided, axis=0)]))


def label_tables(
    tables: Sequence[FeatureTable],
    *,
    features: Sequence[str],
    columns: Sequence[Mapping[str, Floats]],
    targets: tuple[Target, ...],
    costs: Mapping[str, Costs],
    barrier_width: float = 1.0,
    by_uniqueness: bool = False,
) -> Labelling:
    """Rows with labels; give `finish` to `windows.build`.

    Args:
        tables: fetched bars with `close`, and `spread` where the bars have one.
        features: names of the features, in order.
        columns: the features' values of each table.
        targets: what is forecast; none: every complete window counts.
        costs: resolved costs of each symbol.
        barrier_width: `label.k` of the request.
        by_uniqueness: `sample_weights` of the request.

    Raises:
        DataValidationError: a feature has no value at all.
    """
    dropped = {"label_spans_closure": 0, "label_meets_missing_bar": 0}
    all_rows = []
    for table, own in zip(tables, columns, strict=True):
        close = np.asarray(table.columns["close"])
        rows = SymbolRows(
            symbol=table.symbol,
            x_NF=np.column_stack([own[name] for name in features]),
            labels_NK=np.empty((len(table), len(targets))),
            label_available_at_ms_N=table.available_at_ms.copy(),
            available_at_ms_N=table.available_at_ms,
            runs_N=calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar),
            bar_volatility_N=ewma_volatility(close),
            opened_ms_N=table.opened_ms,
            open_N=open_prices(table.columns),
            close_N=close,
            spread_N=_spread(table, costs[table.symbol]),
            spread_open_N=open_spreads(table, costs[table.symbol]),
            untested_N=is_near_roll(table, table.available_at_ms) if targets else None,
        )
        _check_filled(rows, features)
        for column, target in enumerate(targets):
            labels = _labels(target, table, rows, costs=costs[table.symbol], barrier_width=barrier_width)
            rows.labels_NK[:, column] = labels.values
            rows.label_available_at_ms_N[:] = np.maximum(rows.label_available_at_ms_N, labels.available_at_ms)
            if rows.untested_N is not None:
                rows.untested_N[:] |= is_near_roll(table, labels.available_at_ms)
            dropped["label_spans_closure"] += labels.num_spanning_closure
            dropped["label_meets_missing_bar"] += labels.num_missing_bar
        all_rows.append(rows)
    return Labelling(tables, targets, all_rows, dropped, barrier_width, by_uniqueness)


def _spread(table: FeatureTable, costs: Costs) -> Floats:
    """The bars' own, else the session's, in price units; NaN where the symbol's holds at all hours."""
    session_N = session_spread(costs, table.symbol, table.available_at_ms, calendar=table.calendar)
    own_N = table.columns.get(SPREAD)
    return session_N if own_N is None else np.where(np.isfinite(own_N), own_N, session_N)


def _labels(target: Target, table: FeatureTable, rows: SymbolRows, *, costs: Costs, barrier_width: float) -> Labels:
    if not target.classes:
        return label(
            target, close=rows.close_N, opened_ms=table.opened_ms, available_at_ms=table.available_at_ms,
            runs=rows.runs_N, timeframe=table.timeframe,
        )  # fmt: skip
    moves = _moves(target, table, rows)
    if target.measure in ("direction", "follow"):  # of the latter `Labelling.follow` makes its own
        break_even_N = _break_even(costs, table.symbol, rows.close_N, rows.spread_N)
        return direction_labels(moves, break_even_N=break_even_N)
    if target.measure == "triple_barrier":
        return _barriers(target, table, rows, width=barrier_width)
    trend_N, volatility_N = regime_features(rows.close_N, rows.runs_N)  # which rows will have a label
    return regime_labels(target, moves, classes_N=trend_N * volatility_N)


def _barriers(target: Target, table: FeatureTable, rows: SymbolRows, *, width: float) -> Labels:
    moves = _moves(target, table, rows)
    return triple_barrier_labels(target, moves, close=rows.close_N, bar_volatility=rows.bar_volatility_N, width=width)


def _break_even(costs: Costs, symbol: str, close_N: Floats, spread_N: Floats) -> Floats:
    """At every bar with a price; NaN elsewhere."""
    break_even_N = np.full(len(close_N), np.nan)
    priced = np.isfinite(close_N)
    break_even_N[priced] = break_even(costs, symbol, close_N[priced], spread_N[priced])
    return break_even_N


def _moves(target: Target, table: FeatureTable, rows: SymbolRows) -> Labels:
    return price_moves(
        target, close=rows.close_N, opened_ms=table.opened_ms, available_at_ms=table.available_at_ms, runs=rows.runs_N,
        timeframe=table.timeframe,
    )  # fmt: skip


def _check_filled(rows: SymbolRows, features: Sequence[str]) -> None:
    if np.isfinite(rows.x_NF[-1:]).all() and len(rows.x_NF):
        return  # the last row alone tells, as nearly always
    filled = np.isfinite(rows.x_NF).any(axis=0)
    if not filled.all():
        empty = features[int(np.argmin(filled))]
        raise DataValidationError.at(
            "body.features", f"{empty} has no value for {rows.symbol} in this range; leave it out"
        )
