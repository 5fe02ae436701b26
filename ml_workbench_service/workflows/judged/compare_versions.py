"""Comparison of versions: their figures on the rows of their test parts that all of them answered, and each pair's.

A version's own card is about its own test part, which another's may not share. Here every figure is of the same rows.
A loss is compared where the target is the same (Diebold and Mariano's test on the difference by moment, with HAC
errors); money where positions are taken, whatever the target.

Legend: V versions, N common rows, M moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.comparison import ComparedFigures, ComparedPair, ComparisonReport, SkillAgainst
from ml_workbench_service.contracts.evaluation import SignificanceTest
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.tables import ComparedVersion, ComparisonTask
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation.kept_accounts import account_returns, known_at_ms, num_paid_symbols
from ml_workbench_service.integrations.table_files import Table, open_stored, read_columns
from ml_workbench_service.learning.calibration.class_probabilities import class_numbers
from ml_workbench_service.market import performance
from ml_workbench_service.market.significance import hac_mean, mean_by_moment

READ = ("as_of", "symbol", "realised", "prediction", "lower", "upper", "status", "position", "gross", "net")
FEW_ROWS = 250
"""Under so many common rows no difference of versions is told from luck (docs/finance.md, "Verdicts")."""


@dataclass(frozen=True)
class _Rows:
    """One version's common rows.

    Attributes:
        of: the version.
        num_answered: rows of its test part that it answered.
        columns: of `READ` and of its classes, (N,) each.
        classes: its probability columns, in the order of the classes' numbers.
    """

    of: ComparedVersion
    num_answered: int
    columns: Mapping[str, np.ndarray]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.of.model_id}@{self.of.version}"

    def take(self, rows: Ints) -> "_Rows":
        picked = {name: values[rows] for name, values in self.columns.items()}
        return _Rows(self.of, self.num_answered, picked, self.classes)

    @property
    def is_traded(self) -> bool:
        return bool(np.isfinite(self.columns["position"]).any())


def compare(task: ComparisonTask) -> ComparisonReport:
    """Each version's figures on the common rows, and each pair's.

    Raises:
        DataValidationError: no row is common to all.
        SeriesNotFoundError: a version kept no rows.
    """
    read = [_answered(version) for version in task.versions]
    keys = _keys(read)
    common = keys[0]
    for key in keys[1:]:
        common = np.intersect1d(common, key)
    if not len(common):
        raise DataValidationError.at(
            "query.versions",
            "no bar stands in the test part of all these versions, answered by each; compare versions whose test "
            "parts overlap: train them over the same range",
            code="nothing_in_common",
        )
    rows = [each.take(np.flatnonzero(np.isin(key, common))) for each, key in zip(read, keys, strict=True)]
    judged_N = np.ones(len(common), dtype=bool)
    for each in rows:
        if each.of.target is not None:
            judged_N &= np.isfinite(each.columns["realised"])
    as_of_N = rows[0].columns["as_of"]
    return ComparisonReport(
        num_common_rows=len(common),
        num_with_outcome=int(judged_N.sum()),
        first=_moment(as_of_N.min()),
        last=_moment(as_of_N.max()),
        symbols=tuple(sorted(set(rows[0].columns["symbol"].tolist()))),
        versions=tuple(_figures(each, judged_N) for each in rows),
        pairs=tuple(_pair(a, b, judged_N) for a, b in combinations(rows, 2)),
        notes=_notes(len(common), rows),
    )


def _answered(version: ComparedVersion) -> _Rows:
    """The rows of the test part that the version answered, by time and symbol."""
    table = open_stored(Path(version.path), "version", "test")
    classes = _classes(table)
    columns = read_columns(table, [*READ, *classes])
    answered = np.flatnonzero(columns["status"] == "ok")
    answered = answered[np.lexsort((columns["symbol"][answered].astype(str), columns["as_of"][answered]))]
    return _Rows(version, len(answered), columns, classes).take(answered)


def _classes(table: Table) -> tuple[str, ...]:
    return tuple(name for name in table.schema.names if name.startswith("p_"))


def _keys(rows: Sequence[_Rows]) -> list[Ints]:
    """(N,) of each version: a number for each moment and symbol, the same in all."""
    symbols = sorted({symbol for each in rows for symbol in set(each.columns["symbol"].tolist())})
    place = {symbol: number for number, symbol in enumerate(symbols)}
    found = []
    for each in rows:
        numbers_N = np.array([place[symbol] for symbol in each.columns["symbol"].tolist()], dtype=np.int64)
        found.append(each.columns["as_of"].astype(np.int64) * len(symbols) + numbers_N)
    return found


def _figures(rows: _Rows, judged_N: Bools) -> ComparedFigures:
    losses_N, plain_N, against = _losses(rows, judged_N)
    has_loss = losses_N is not None and plain_N is not None and bool(judged_N.any())
    model = float(np.mean(losses_N)) if has_loss and losses_N is not None else None
    plain = float(np.mean(plain_N)) if has_loss and plain_N is not None else None
    net_M, settled_M = _account(rows)
    daily_D = np.array(list(performance.daily_returns(net_M, settled_M).values()))
    held_N = np.nan_to_num(rows.columns["position"]) != 0
    gross_N = rows.columns["gross"][held_N]
    of = rows.of
    return ComparedFigures(
        model_id=of.model_id,
        version=of.version,
        href=f"/api/v1/models/{of.model_id}/versions/{of.version}",
        target=of.target,
        verdict=of.verdict,
        num_rows=rows.num_answered,
        loss=None if losses_N is None else "brier" if rows.classes else "squared_error",
        mean_loss=model,
        skill=None if model is None or not plain else 1 - model / plain,
        skill_against=against if model is not None else None,
        coverage=_coverage(rows, judged_N),
        net_log_return=float(net_M.sum()) if rows.is_traded else None,
        sharpe=performance.annual(performance.sharpe(daily_D)) if rows.is_traded and len(daily_D) > 1 else None,
        hit_rate=float(np.mean(gross_N[np.isfinite(gross_N)] > 0)) if np.isfinite(gross_N).any() else None,
    )


def _losses(rows: _Rows, judged_N: Bools) -> tuple[Floats | None, Floats | None, SkillAgainst | None]:
    """Each judged row's loss, the plain answer's, and which that is; None where nothing is forecast."""
    if rows.of.target is None:
        return None, None, None
    realised_N = rows.columns["realised"][judged_N]
    if rows.classes:
        names = [name.removeprefix("p_") for name in rows.classes]
        came_NC = (realised_N[:, None] == class_numbers(names)).astype(np.float64)
        said_NC = np.column_stack([rows.columns[name][judged_N] for name in rows.classes])
        usual_C = came_NC.mean(axis=0) if len(came_NC) else np.zeros(len(rows.classes))
        return (
            np.asarray(((said_NC - came_NC) ** 2).sum(axis=1)),
            np.asarray(((usual_C - came_NC) ** 2).sum(axis=1)),
            "frequencies_of_rows",
        )
    is_price = parse_target(rows.of.target, rows.of.timeframe).needs_price
    plain = 0.0 if is_price or not len(realised_N) else float(realised_N.mean())
    errors_N = (rows.columns["prediction"][judged_N] - realised_N) ** 2
    return errors_N, (plain - realised_N) ** 2, "no_change" if is_price else "mean_of_rows"


def _coverage(rows: _Rows, judged_N: Bools) -> float | None:
    realised_N, lower_N, upper_N = (rows.columns[name][judged_N] for name in ("realised", "lower", "upper"))
    stated_N = np.isfinite(lower_N) & np.isfinite(upper_N) & np.isfinite(realised_N)
    if not stated_N.any():
        return None
    return float(np.mean((lower_N <= realised_N)[stated_N] & (realised_N <= upper_N)[stated_N]))


def _account(rows: _Rows) -> tuple[Floats, Ints]:
    """(M,) net log return of the account and when each step is settled."""
    columns = rows.columns
    num_symbols = num_paid_symbols(columns["net"], columns["symbol"])
    net_M, moments_M = account_returns(columns["net"], columns["as_of"].astype(np.int64), num_symbols=num_symbols)
    return net_M, known_at_ms(moments_M, timeframe=rows.of.timeframe, fill=rows.of.fill)


def _pair(a: _Rows, b: _Rows, judged_N: Bools) -> ComparedPair:
    said = [each.columns["prediction"] for each in (a, b)]
    both_N = np.isfinite(said[0]) & np.isfinite(said[1])
    varies = both_N.sum() > 1 and all(np.ptp(each[both_N]) > 0 for each in said)
    return ComparedPair(
        a=a.name,
        b=b.name,
        correlation=float(np.corrcoef(said[0][both_N], said[1][both_N])[0, 1]) if varies else None,
        diebold_mariano=_diebold_mariano(a, b, judged_N),
    )


def _diebold_mariano(a: _Rows, b: _Rows, judged_N: Bools) -> SignificanceTest | None:
    """Two-sided, of the difference of losses by moment."""
    if a.of.target is None or a.of.target != b.of.target or a.classes != b.classes or not judged_N.any():
        return None
    (loss_a_N, _, _), (loss_b_N, _, _) = _losses(a, judged_N), _losses(b, judged_N)
    assert loss_a_N is not None
    assert loss_b_N is not None
    gains_M = mean_by_moment(loss_a_N - loss_b_N, a.columns["as_of"][judged_N].astype(np.int64))
    found = hac_mean(gains_M, horizon=max(a.of.horizon, b.of.horizon))
    if found.p_value is None:
        return found
    return found.model_copy(update={"p_value": 2 * min(found.p_value, 1 - found.p_value)})


def _notes(num: int, rows: Sequence[_Rows]) -> tuple[str, ...]:
    notes = []
    if num < FEW_ROWS:
        notes.append(f"{num} common rows are few: no difference here is told from luck")
    if len({each.of.target for each in rows}) > 1:
        notes.append("targets differ: losses stand for themselves, and no test is made between them")
    if any(num < each.num_answered for each in rows):
        notes.append("rows that not all of them answered are left out; positions changed there have paid elsewhere")
    return tuple(notes)


def _moment(moment_ms: float) -> datetime:
    return datetime.fromtimestamp(int(moment_ms) / 1000, tz=UTC)
