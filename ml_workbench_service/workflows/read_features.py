"""Features of a range out of the feature store, point in time, in the formats of the Feature Store contract.

One line: the store's tables of the range → not too much for one answer → JSON, or columns.
"""

from collections.abc import Sequence

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.contracts.market_data import FeatureRequest

MOST_CELLS = 5_000_000
"""Rows times columns of one answer; some 100 MB as JSON."""


def read_features(store: FeatureStore, request: FeatureRequest) -> Sequence[FeatureTable]:
    """The tables, one a symbol in the order asked.

    Raises:
        DataValidationError: no such symbol, timeframe, range or feature, or more than one answer holds.
        UpstreamError, UpstreamTimeoutError: the feature store failed.
    """
    tables = store.fetch(
        request.symbols,
        request.timeframe,
        start_ms=None if request.start_date is None else to_ms(request.start_date),
        end_ms=None if request.end_date is None else to_ms(request.end_date),
        features=request.features,
        as_of_ms=None if request.as_of is None else to_ms(request.as_of),
    )
    num_cells = sum(len(table) * (2 + len(table.columns)) for table in tables)
    if num_cells > MOST_CELLS:
        raise DataValidationError.at(
            "start_date",
            f"this answer would hold {num_cells:,} values, and one holds {MOST_CELLS:,}; ask for a shorter range, "
            "fewer symbols or fewer features",
            code="too_long",
        )
    return tables
