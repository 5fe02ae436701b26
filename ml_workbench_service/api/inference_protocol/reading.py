"""Tensors to questions: windows or feature columns, and symbol, time and price, become the bodies of `/predict`.

    window    [N, T, F] or [T, F]    rows oldest first, features in the model's own order
    <feature> [N, T] or [T]          or a tensor for each feature, by its name
    symbol, timeframe, as_of (BYTES), price, position (a number type)   [N] or [1], or one parameter for all rows

Neither window nor columns: the service fetches the features, as for `/predict`. What a question may say, and what it
means, is decided where `/predict` decides it: this only brings the values there, unchanged.

Legend: N windows, T rows, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from pydantic import ValidationError

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.tensors import Tensor, refused
from ml_workbench_service.serving.model import ServedModel

Enqueue = Literal["best_effort", "guaranteed", "never"]
WINDOW = "window"
TEXTS, NUMBERS = ("symbol", "timeframe", "as_of"), ("price", "position")
ALIASES = {"timestamp": "as_of"}
ENQUEUE = "enqueue"
NOT_OURS = {"binary_data_output", "content_type", "headers", "priority", "timeout"}
"""Parameters that clients send to any server, and that change no answer."""
MOST_ROWS = 1_000
MOST_WINDOW_ROWS = 100_000
LARGEST = 1e15
"""As for `/predict`: beyond it a float32 network would overflow."""


@dataclass(frozen=True)
class Questions:
    """A request as bodies of `/predict`, and what becomes of their records."""

    requests: list[PredictRequest]
    enqueue: Enqueue


def read_questions(
    model: ServedModel, tensors: Sequence[Tensor], parameters: Mapping[str, Any], *, version: str | None
) -> Questions:
    """What is asked of a version; its card says which features there are, and in what order.

    Raises:
        DataValidationError: a tensor or parameter that nobody knows, twice the same, or a shape that does not fit.
    """
    by_name = _by_name(tensors)
    about, enqueue = _parameters(parameters)
    columns = _columns(model, by_name)
    for name in by_name:
        _check_told(model, name, about)
    told = {name: _told(tensor) for name, tensor in by_name.items()}
    num = _num_rows(columns, told)
    if not 1 <= num <= MOST_ROWS:
        raise DataValidationError.at("inputs", f"send 1 to {MOST_ROWS} windows at a time; here are {num}")
    for name, values in columns.items():
        _check_values(name, values)
    rows = [_request(model.card, about, told, row, version=version) for row in range(num)]
    if columns:
        rows = [
            each.model_copy(update={"features": {name: values[row] for name, values in columns.items()}})
            for row, each in enumerate(rows)
        ]
    return Questions(rows, enqueue)


def _by_name(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for each in tensors:
        name = ALIASES.get(each.name, each.name)
        if name in found:
            raise refused(each.name, f"{name} is sent twice; send it once")
        found[name] = each
    return found


def _parameters(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], Enqueue]:
    """What is said of every row, and `enqueue`."""
    known = (*TEXTS, *NUMBERS, *ALIASES, ENQUEUE)
    about: dict[str, Any] = {}
    enqueue: Any = "best_effort"
    for name, value in parameters.items():
        place = ALIASES.get(name, name)
        if name in NOT_OURS or value is None:
            continue
        if name not in known:
            near = close_names(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise DataValidationError.at(f"parameters.{name[:64]}", f"this parameter is not known; {advice}")
        if name == ENQUEUE:
            enqueue = value
        elif place in about:
            raise DataValidationError.at(f"parameters.{name}", f"{place} is sent twice; send it once")
        else:
            about[place] = value
    if enqueue not in ("best_effort", "guaranteed", "never"):
        raise DataValidationError.at("parameters.enqueue", "enqueue is `best_effort`, `guaranteed` or `never`")
    return about, cast(Enqueue, enqueue)


def _columns(model: ServedModel, by_name: dict[str, Tensor]) -> dict[str, Floats]:
    """(N, T) of each feature, from the window or from tensors of features' names; takes them out.

    A feature may have the name of something that is said of a row (`price`): then the tensor is the feature.
    """
    names = model.card.features
    window = None if WINDOW in names else by_name.pop(WINDOW, None)
    if window is None:
        wanted = [name for name in by_name if name in names or name in model.derivation.base_columns]
        found = {name: by_name.pop(name).numbers for name in wanted}
        num = max((len(each) for each in found.values() if each.ndim == 2), default=1)
        return {name: _column(name, values, num) for name, values in found.items()}
    x_NTF = window.numbers[None] if len(window.shape) == 2 else window.numbers
    if x_NTF.ndim != 3 or x_NTF.shape[2] != len(names) or x_NTF.shape[1] < 1:
        raise refused(
            WINDOW,
            f"window has the shape [windows, rows, {len(names)}]: rows oldest first, of {', '.join(names)} in this "
            f"order; here it is {list(window.shape)}",
        )
    return {name: x_NTF[:, :, place] for place, name in enumerate(names)}


def _check_told(model: ServedModel, name: str, about: Mapping[str, Any]) -> None:
    """Whether a tensor that is no feature may be sent."""
    known = (WINDOW, *model.card.features, *TEXTS, *NUMBERS)
    if name in model.card.features:
        raise refused(name, f"{name} is in the window already; send the window or a tensor for each feature")
    if name not in known:
        near = close_names(name, known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise refused(name, f"{model.card.id} has no input of this name; {advice}")
    if name in about:
        raise refused(name, f"{name} is sent as a tensor and as a parameter; send one of them")


def _column(name: str, values: Floats, num: int) -> Floats:
    """(N, T) of a tensor of [N, T] or, of a single window, [T]."""
    rows_NT = values[None] if values.ndim == 1 else values
    if rows_NT.ndim != 2 or len(rows_NT) != num or rows_NT.shape[1] < 1:
        raise refused(
            name, f"{name} has the shape [windows, rows], here [{num}, rows]; of a single window [rows] will do"
        )
    return rows_NT


def _check_values(name: str, rows_NT: Floats) -> None:
    if rows_NT.shape[1] > MOST_WINDOW_ROWS:
        raise refused(name, f"{name}: a window has at most {MOST_WINDOW_ROWS} rows; send the newest")
    if not (np.abs(rows_NT) <= LARGEST).all():  # NaN is not
        raise refused(name, f"{name} has values that are not finite, or beyond {LARGEST:.0e}; send numbers")


def _told(tensor: Tensor) -> list[Any]:
    """One value for each row; what a row does not say is None."""
    name = ALIASES.get(tensor.name, tensor.name)
    if name in TEXTS:
        return [each or None for each in tensor.texts]
    return [None if np.isnan(each) else each for each in tensor.numbers.reshape(-1).tolist()]


def _num_rows(columns: Mapping[str, Floats], told: Mapping[str, list[Any]]) -> int:
    """How many windows; raises DataValidationError where tensors do not agree on it."""
    num = max(map(len, columns.values())) if columns else max(map(len, told.values()), default=1)
    for name, values in told.items():
        if len(values) not in (1, num):
            raise refused(name, f"{name} has {len(values)} values for {num} windows; send one for each, or one for all")
    return num


def _request(
    card: ModelCard, about: Mapping[str, Any], told: Mapping[str, list[Any]], row: int, *, version: str | None
) -> PredictRequest:
    """The body of one row, without its columns; what a model can mean alone need not be said."""
    body: dict[str, Any] = {"timeframe": card.timeframe, "version": version}
    if len(card.symbols) == 1:
        body["symbol"] = card.symbols[0]
    body |= about
    body |= {name: value for name, values in told.items() if (value := values[row % len(values)]) is not None}
    if "symbol" not in body:
        raise refused("symbol", f"{card.id} knows {', '.join(card.symbols)}; say which with `symbol`")
    try:
        return PredictRequest.model_validate(body)
    except ValidationError as error:
        raise of_pydantic(error, PredictRequest, prefix="inputs" if told else "parameters") from error
