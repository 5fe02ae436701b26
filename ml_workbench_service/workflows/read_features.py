"""Features of a range out of the feature store, point in time, in the formats of the Feature Store contract.

One line: the store's tables of the range → not too much for one answer → JSON, or columns.
"""

from collections.abc import Mapping, Sequence

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.feature_sets import is_reference
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.contracts.market_data import FeatureRequest
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.market.features.expressions.named_sets import named_set
from ml_workbench_service.training.named_features import selected_set

MOST_CELLS = 5_000_000
"""Rows times columns of one answer; some 100 MB as JSON."""


def selected_sets(request: FeatureRequest, registry: FolderModelRegistry) -> dict[str, tuple[str, ...]]:
    """The expressions of each set that a search made and the request names, by the entry that names it.

    Raises:
        DataValidationError: there is no such set, or it was selected on other bars.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, feature in enumerate(request.features):
        if not is_reference(feature) or named_set(feature) is not None:
            continue
        path = f"features.{number}"
        made = selected_set(feature, registry, path=path)
        if made.timeframe != request.timeframe:
            raise DataValidationError.at(
                path,
                f"{feature} was selected on {made.timeframe} bars and this request reads {request.timeframe}; ask for "
                f"{made.timeframe}, or write its expressions (GET /api/v1/models/{made.id}) out",
            )
        found[feature] = tuple(each.expression for each in made.expressions)
    return found


def with_sets(features: Sequence[str], selected: Mapping[str, Sequence[str]]) -> list[str]:
    """The features, with sets written out; a column that comes twice comes once.

    Args:
        selected: the expressions of those that do not ship.
    """
    found: list[str] = []
    for feature in features:
        ships = named_set(feature)
        found += selected.get(feature, [feature]) if ships is None else ships.expressions().values()
    return list(dict.fromkeys(found))


def read_features(
    store: FeatureStore, request: FeatureRequest, selected: Mapping[str, Sequence[str]]
) -> Sequence[FeatureTable]:
    """The tables, one a symbol in the order asked.

    Args:
        selected: `selected_sets` of the request.

    Raises:
        DataValidationError: no such symbol, timeframe, range or feature, or more than one answer holds.
        UpstreamError, UpstreamTimeoutError: the feature store failed.
    """
    tables = store.fetch(
        request.symbols,
        request.timeframe,
        start_ms=None if request.start_date is None else to_ms(request.start_date),
        end_ms=None if request.end_date is None else to_ms(request.end_date),
        features=with_sets(request.features, selected),
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
