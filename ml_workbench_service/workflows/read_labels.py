"""Labels of a range as a training over it would see them, by the functions that label trainings.

One line: the store's closes of the range → `label_tables` → for regimes the rule of the training part → numbers.
"""

from datetime import UTC, datetime

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import FeatureStore, Floats
from ml_workbench_service.contracts.market_data import LabelRequest, LabelSeries
from ml_workbench_service.contracts.tables import NO_TIME, Values
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.learning.calibration.class_probabilities import VALUE_OF
from ml_workbench_service.learning.data import labelling, windows
from ml_workbench_service.learning.data.labelling import Labelling
from ml_workbench_service.learning.data.splits import Split
from ml_workbench_service.learning.data.windows import SymbolRows
from ml_workbench_service.market.costs import resolved_costs

USUAL_SPLIT = 0.2
"""A training's `validation_split` unless it says another: what is fitted is fitted on what lies before."""
FITTED = frozenset({"market_regime", "triple_barrier"})
"""Measures with a rule of the training part: thresholds, the season of volatility."""


def read_labels(store: FeatureStore, request: LabelRequest) -> LabelSeries:
    """The labels, with when each is known; costs are the pair's own, as in a training that names none.

    Raises:
        DataValidationError: no such target, symbol, timeframe or range, or too few bars for a regime's rule.
        UpstreamError, UpstreamTimeoutError: the feature store failed.
    """
    try:
        target = parse_target(request.target, request.timeframe)
    except ValueError as error:
        raise DataValidationError.at("query.target", f"{error}") from error
    if target.measure == "follow":
        raise DataValidationError.at(
            "query.target", "whether a side pays is a label of a version and its primary alone; ask for direction_<h>"
        )
    table = store.fetch(
        [request.symbol],
        target.timeframe or request.timeframe or "1h",
        start_ms=to_ms(request.start_date),
        end_ms=to_ms(request.end_date),
        features=["close"],
        as_of_ms=None if request.as_of is None else to_ms(request.as_of),
    )[0]
    labelled = labelling.label_tables(
        [table],
        features=["close"],
        columns=[{"close": np.asarray(table.columns["close"])}],
        targets=(target,),
        costs={table.symbol: resolved_costs(table.symbol, None)},
        barrier_width=request.k,
    )
    rows = _rows(labelled, target)
    values_N = _values(rows.labels_NK[:, 0], target)
    known_N = rows.label_available_at_ms_N
    is_there_N = np.isfinite(values_N)
    return LabelSeries(
        symbol=table.symbol,
        timeframe=table.timeframe,
        target=target.name,
        timestamps=tuple(_moment(each) for each in table.opened_ms.tolist()),
        labels=tuple(value if there else None for value, there in zip(values_N.tolist(), is_there_N, strict=True)),
        available_at=tuple(
            _moment(each) if there else None for each, there in zip(known_N.tolist(), is_there_N, strict=True)
        ),
        classes={name: _number(target, place) for place, name in enumerate(target.classes)},
        num_dropped=labelled.num_dropped,
        data_source=table.data_source,
    )


def label_columns(labels: LabelSeries) -> list[Values]:
    """One row an opening."""
    known = [NO_TIME if each is None else to_ms(each) for each in labels.available_at]
    return [
        Values("symbol", "text", labels.symbol),
        Values("timestamp", "time", np.array([to_ms(each) for each in labels.timestamps], dtype=np.int64)),
        Values("label", "number", np.array([np.nan if each is None else each for each in labels.labels])),
        Values("available_at", "time", np.array(known, dtype=np.int64)),
    ]


def _rows(labelled: Labelling, target: Target) -> SymbolRows:
    """The symbol's rows; of targets whose rules a training fits, as one that splits as usual would finish them."""
    if target.measure not in FITTED:
        return labelled.rows[0]
    finished: list[SymbolRows] = []

    def finish(split: Split) -> list[SymbolRows]:
        finished[:] = labelled.finish(split)
        return finished

    windows.build(
        labelled.rows, features=["close"], is_level=[True], lookback=1, split=USUAL_SPLIT, scales_labels=[False],
        finish_rows=finish,
    )  # fmt: skip
    return finished[0]


def _values(labels_N: Floats, target: Target) -> Floats:
    """(N,) labels in the target's units; classes as the numbers that outcomes have."""
    if not target.classes:
        return labels_N
    numbers_C = np.array([_number(target, place) for place in range(len(target.classes))])
    there_N = np.isfinite(labels_N)
    return np.where(there_N, numbers_C[np.where(there_N, labels_N, 0).astype(np.int64)], np.nan)


def _number(target: Target, place: int) -> float:
    return VALUE_OF.get(target.classes[place], (float(place), "hold"))[0]


def _moment(moment_ms: int) -> datetime:
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC)
