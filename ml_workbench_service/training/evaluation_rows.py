"""Evaluation rows: what a version said at every row that decides, what came of it, and what a position there paid.

    evaluation.parquet    in the bundle, listed by its manifest; one row a window of the parts validation, calibration
                          and test that serving would be asked about, by time and symbol within each

    part, as_of, symbol, price, realised, prediction, lower, upper, direction, confidence, status, position, gross,
    cost, net, equity; policies: action; classes: `p_<class>` each

`contracts/series.py` says what each column means. `realised` is null where the row has no label that is judged (one
that spans a closure, say): a signal holds there all the same. `equity` is the running sum of the account's net log
returns, all symbols with equal weights as in the card's backtest, so that its last value is the card's net log return.

Legend: N rows of a part.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from ml_workbench_service.learning.calibration.class_probabilities import class_numbers
from ml_workbench_service.learning.data.windows import Part
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.trading_series import POSITIONS, Positions

EVALUATED: tuple[Part, ...] = ("validation", "calibration", "test")
DIRECTIONS = np.array(["sell", "hold", "buy"])
"""Of -1, 0 and 1."""
ROWS_OF_A_GROUP = 32_768
"""Rows that a reader of a few must read: some 3 MB."""
STATED = ("prediction", "lower", "upper", "confidence")
Columns = Mapping[str, np.ndarray]


def part_rows(
    part: Part, said: Columns, positions_N: Positions | None, ends: Ints, problem: TrainingProblem, *, answers_N: Bools
) -> dict[str, np.ndarray]:
    """One part's columns, each (N,).

    Args:
        said: what the decoder makes of each row, of `STATED`, `direction` (-1, 0, 1), `action` and `p_…` what there is.
        positions_N: the signed size at each row; None where nothing is traded.
        ends: the rows.
        answers_N: whether serving answers them.
    """
    windows = problem.windows
    is_judged_R = np.zeros(len(windows.close_R), dtype=bool)
    is_judged_R[windows.parts[part]] = True
    order = np.lexsort((windows.symbol_R[ends], windows.available_at_ms_R[ends]))
    ends, answers_N = ends[order], answers_N[order]
    found: dict[str, np.ndarray] = {
        "part": np.full(len(ends), part),
        "as_of": windows.available_at_ms_R[ends],
        "symbol": np.array(windows.symbols)[windows.symbol_R[ends]],
        "price": windows.close_R[ends],
        "realised": np.where(is_judged_R[ends], _outcomes(problem)[ends], np.nan),
        **{name: np.full(len(ends), np.nan) for name in STATED},
        "direction": np.full(len(ends), "hold"),
        "status": np.where(answers_N, "ok", "abstain"),
    }
    for name, values_N in said.items():
        own_N = values_N[order]
        if name == "direction":
            found[name] = DIRECTIONS[np.where(answers_N, own_N, 0).astype(np.int64) + 1]
        else:
            found[name] = np.where(answers_N, own_N.astype(np.float64), np.nan)
    held_N = None if positions_N is None else np.where(answers_N, positions_N[order], 0)
    return {**found, **_money(held_N, ends, problem)}


def _outcomes(problem: TrainingProblem) -> Floats:
    """(R,) the headline's labels, classes by the numbers that predictions have; NaN where there is no target."""
    labels_RK = problem.windows.own_labels_RK
    if not problem.targets:
        return np.full(len(labels_RK), np.nan)
    labels_R, classes = labels_RK[:, 0], problem.targets[0].classes
    if not classes:
        return labels_R
    there_R = np.isfinite(labels_R)
    return np.where(there_R, class_numbers(classes)[np.where(there_R, labels_R, 0).astype(np.int64)], np.nan)


def write_rows(draft: Path, parts: Sequence[Columns]) -> None:
    """`evaluation.parquet`: all parts, one after the other; numbers that are missing are null."""
    import polars as pl  # no API process's

    whole = {name for name in ("position", "action") if all(_is_whole(part[name]) for part in parts if name in part)}
    frames = [
        pl.DataFrame({name: _series(name, values, is_whole=name in whole) for name, values in part.items()})
        for part in parts
    ]
    pl.concat(frames).write_parquet(draft / EVALUATION_FILE, compression="zstd", row_group_size=ROWS_OF_A_GROUP)


def _is_whole(positions_N: Floats) -> bool:
    """Whether all of them are short, flat or long, of size 1."""
    return bool(np.isin(positions_N[np.isfinite(positions_N)], POSITIONS).all())


def _money(positions_N: Positions | None, ends: Ints, problem: TrainingProblem) -> dict[str, np.ndarray]:
    """Position, and what its step came to; all null where nothing is traded."""
    names = ("position", "gross", "cost", "net", "equity")
    found = {name: np.full(len(ends), np.nan) for name in names}
    if positions_N is None:
        return found
    found["position"] = positions_N.astype(np.float64)
    account = signal_backtest.realise(positions_N, ends, problem)
    place = np.full(len(problem.windows.close_R), -1, dtype=np.int64)
    place[ends] = np.arange(len(ends))
    paid = place[account.rows_N]
    found["gross"][paid], found["net"][paid] = account.gross_N, account.net_N
    found["cost"] = found["gross"] - found["net"]
    found["equity"][paid] = account.equity_N
    return found


def _series(name: str, values_N: np.ndarray, *, is_whole: bool) -> Any:
    import polars as pl

    if name == "as_of":
        return pl.Series(name, values_N).cast(pl.Datetime("ms", "UTC"))
    if values_N.dtype.kind == "f":
        found = pl.Series(name, values_N, nan_to_null=True)
        return found.cast(pl.Int8) if is_whole else found
    return pl.Series(name, values_N.astype(str).tolist(), dtype=pl.String)
