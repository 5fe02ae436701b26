"""Bodies to columns: many requests that are alike, so that their questions need no object each.

Legend: N requests.
"""

from collections.abc import Sequence

import numpy as np

from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.prediction import FeatureColumns, PredictRequest
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.runs.from_columns import AskedRows, Windows


def columns_of(
    model: ServedModel, requests: Sequence[PredictRequest], *, received_ms: int
) -> tuple[AskedRows, Windows] | None:
    """What requests ask, as columns; None where one of them is not right by itself, or brings no columns.

    Then each is read alone (`request_to_windows.question_of`), which says what is wrong, or fetches.
    """
    card = model.card
    sent = [each.columns for each in requests if each.columns is not None and _fits(model, each)]
    if len(sent) < len(requests) or _are_derived(model, sent[0]):
        return None
    lengths = [len(each[card.features[0]]) for each in sent]
    if min(lengths) < card.min_window:
        return None
    if not all(len(values) == num for each, num in zip(sent, lengths, strict=True) for values in each.values()):
        return None
    moments = [NO_TIME if each.as_of is None else to_ms(each.as_of) for each in requests]
    if max(moments) > received_ms:
        return None
    ends_N = np.cumsum(lengths)
    columns = {
        name: np.concatenate([np.asarray(each[name], dtype=np.float64) for each in sent]) for name in card.features
    }
    asked = AskedRows(
        symbol=Coded.of(_symbol(model, each) for each in requests),
        as_of_ms_N=np.array(moments, dtype=np.int64),
        price_N=np.array([each.price for each in requests], dtype=np.float64),
        position_N=np.array([each.position or 0.0 for each in requests], dtype=np.float64),
    )
    return asked, Windows(columns, ends_N - np.array(lengths), ends_N)


def _fits(model: ServedModel, request: PredictRequest) -> bool:
    card, sent = model.card, request.columns
    timeframe = request.timeframe or (request.context.timeframe if request.context else None)
    if sent is None or len(sent) != len(card.features) or timeframe not in (None, card.timeframe):
        return False
    return all(name in sent for name in card.features) and _symbol(model, request) is not None


def _symbol(model: ServedModel, request: PredictRequest) -> str | None:
    if request.symbol is not None:
        return request.symbol
    if request.context is not None:
        return request.context.symbol
    return model.card.symbols[0] if len(model.card.symbols) == 1 else None


def _are_derived(model: ServedModel, sent: FeatureColumns) -> bool:
    """Whether the columns are those that the model's expressions read."""
    return bool(model.derivation.expressions) and set(sent) == set(model.derivation.base_columns)
