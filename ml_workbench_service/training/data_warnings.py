"""Warnings about a training's data, on its job and its card: what was asked for and not there, and what tells nothing.

    range_clipped          the store has less than was asked for, or the primary was fitted on earlier rows
    column_costs_windows   one column's missing values cost over a tenth of the windows
    constant_column        one column never changes in the training part
    one_class              a part holds only one class of the target

Each is `code: details`.
"""

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms, to_ms, utc_now
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.data.scaling import to_logs
from ml_workbench_service.learning.data.window_losses import quality_warnings
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.market.calendar import DAY_MS, MAX_FIXINGS_JUMP_MS, expected_ms

EDGE_MS = DAY_MS
"""Of the market's time: so much may be missing at an end without a word; feeds differ in their first and last bars."""


def data_warnings(order: TrainingOrder, data: TrainingData) -> list[str]:
    """In the order of the module's list."""
    windows, rows = data.windows, data.labelling.rows
    scaler = windows.scaler
    return [
        *_after_the_primary(order),
        *(line for table in data.tables for line in clipped(table, order.request)),
        *quality_warnings(
            rows,
            [to_logs(each.x_NF, scaler.features, scaler.is_level_F) for each in rows],
            scaler.features,
            lookback=windows.lookback,
            train=[each.available_at_ms_N <= windows.borders_ms["validation"] for each in rows],
        ),
        *_one_class(order, data),
    ]


def _after_the_primary(order: TrainingOrder) -> list[str]:
    """What a follower leaves out, because its primary has seen the answers."""
    if order.primary is None or not order.primary.reference.is_clipped:
        return []
    seen = order.primary.reference
    return [
        f"range_clipped: {seen.model_id}@{seen.version} was fitted on rows up to "
        f"{iso_of_ms(to_ms(seen.fitted_until))}; only what came later is used"
    ]


def clipped(table: FeatureTable, request: TrainRequest) -> list[str]:
    """Whether the table begins later or ends earlier than was asked for, by more than a day of the market's time."""
    asked_start = to_ms(request.start_date)
    asked_end = min(to_ms(request.end_date), to_ms(request.as_of or utc_now()), to_ms(utc_now()))
    start, end = int(table.opened_ms[0]), int(table.opened_ms[-1]) + TIMEFRAMES_MS[table.timeframe]
    if table.calendar == "fixings":
        is_clipped = max(start - asked_start, asked_end - end) > MAX_FIXINGS_JUMP_MS
    else:
        late = expected_ms(max(start, asked_start)) - expected_ms(asked_start)
        early = expected_ms(asked_end) - expected_ms(min(end, asked_end))
        is_clipped = max(int(late), int(early)) > max(EDGE_MS, TIMEFRAMES_MS[table.timeframe])
    if not is_clipped:
        return []
    asked, there = (
        f"{iso_of_ms(begin)} to {iso_of_ms(until)}" for begin, until in ((asked_start, asked_end), (start, end))
    )
    return [f"range_clipped: {table.symbol} was asked for from {asked}, and there is {there}"]


def _one_class(order: TrainingOrder, data: TrainingData) -> list[str]:
    windows, found = data.windows, []
    for number, target in enumerate(order.targets):
        if not target.classes:
            continue
        for part in ("train", "test"):
            classes = set(windows.own_labels_RK[windows.parts[part], number].astype(int).tolist())
            if len(classes) == 1:
                name = target.classes[classes.pop()]
                found.append(f"one_class: every {target.name} of the {part} part is {name}")
    return found
