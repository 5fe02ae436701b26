"""Request parsing: from a body to a `Question`, its columns matched by name or fetched, its time decided.

Legend: T rows, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable, Floats
from ml_workbench_service.contracts.prediction import FeatureColumns, PredictRequest
from ml_workbench_service.contracts.rejections import MOST_ERRORS
from ml_workbench_service.market import calendar
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.fills import fetch_with_opens
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.serving.abstain_by_clock import is_about_the_past
from ml_workbench_service.serving.history import bars_needed, columns_needed, newest_question
from ml_workbench_service.serving.model import ServedModel, bar_end_ms
from ml_workbench_service.serving.predict import SAMPLE_CLOCK, Question

MOST_NAMED = 20
"""Features in a sentence."""


def question_of(model: ServedModel, request: PredictRequest, *, received_ms: int) -> Question | None:
    """The question of a request that brings its columns; None where the service must fetch them (`fetch_question`).

    Without `as_of` it is about the last bar that was over at receipt. How old the sent features and their model are
    cannot be known then; that the market is closed can.

    Args:
        received_ms: when the request came in, by the service's clock.

    Raises:
        DataValidationError: the timeframe is not the model's, names or lengths of the columns do not fit, or `as_of`
            lies after receipt.
    """
    symbol = symbol_of(model, request)
    _check_timeframe(model, request)
    if request.columns is None:
        return None
    asked_ms = _asked_ms(request, received_ms)
    as_of_ms = received_ms // model.timeframe_ms * model.timeframe_ms if asked_ms is None else asked_ms
    path = "body.features" if request.features is not None else "body.inputs"
    sent = request.columns
    if model.derivation.expressions:
        sent = by_known_names(model, sent)
    if model.derivation.expressions and set(sent) == set(model.derivation.base_columns):
        sent = derived(model, sent, as_of_ms, path=path)
    x_TF = matrix(model, sent, path=path)
    return Question(
        symbol=symbol,
        x_TF=x_TF,
        as_of_ms=as_of_ms,
        price=request.price,
        bar_volatility=_bar_volatility(model, symbol, request.columns, as_of_ms),
        newest_available_at_ms=as_of_ms,
        position=request.position or 0.0,
        has_known_age=asked_ms is not None,
        warnings=() if asked_ms is not None else ("as_of_assumed",),
        **_clock(model, asked_ms, received_ms=received_ms),
    )


def fetch_question(model: ServedModel, request: PredictRequest, store: FeatureStore, *, received_ms: int) -> Question:
    """The question whose columns the service fetches; blocks, so it is called in a thread.

    A store that ended by itself (the sample) is asked by its own clock, with the warning `sample_clock`.

    Args:
        received_ms: when the request came in, by the service's clock.

    Raises:
        DataValidationError: no data, a gap within the newest bars, or an `as_of` after receipt.
        UpstreamError, UpstreamTimeoutError: the feature store failed.
    """
    symbol = symbol_of(model, request)
    asked_ms = _asked_ms(request, received_ms)
    if symbol not in model.scaler.symbols:
        return _about_unknown(model, symbol, request, asked_ms, received_ms)
    own_ms = store.now_ms()
    now_ms = received_ms if own_ms is None else max(own_ms, asked_ms or own_ms)
    as_of_ms, last = now_ms if asked_ms is None else asked_ms, bars_needed(model)

    def ask(features: list[str]) -> list[FeatureTable]:
        return store.fetch(
            [symbol], model.card.timeframe, start_ms=None, end_ms=None, features=features, as_of_ms=as_of_ms, last=last
        )

    (table,) = fetch_with_opens(ask, columns_needed(model))
    question = newest_question(model, table, as_of_ms=asked_ms)
    if request.price is not None:
        question = replace(question, price=request.price)
    if own_ms is not None:
        question = replace(question, warnings=(*question.warnings, SAMPLE_CLOCK))
    question = replace(question, position=request.position or 0.0)
    return replace(question, **_clock(model, asked_ms, received_ms=received_ms, now_ms=now_ms))


def _asked_ms(request: PredictRequest, received_ms: int) -> int | None:
    """The moment that the request names, if it does."""
    if request.as_of is None:
        return None
    asked_ms = to_ms(request.as_of)
    if asked_ms > received_ms:
        raise DataValidationError.at(
            "body.as_of",
            f"this moment is still to come: by the service's clock it is {iso_of_ms(received_ms)}; leave `as_of` out, "
            "or send one up to then",
            code="still_to_come",
        )
    return asked_ms


def _clock(model: ServedModel, asked_ms: int | None, *, received_ms: int, now_ms: int | None = None) -> dict[str, Any]:
    """What a `Question` says of the clock that decides about it: the present, or of one about the past its `as_of`.

    Args:
        now_ms: the present where it is not the moment of receipt.
    """
    clock_ms = received_ms if now_ms is None else now_ms
    if asked_ms is not None and is_about_the_past(model, asked_ms, now_ms=clock_ms):
        return {"received_ms": received_ms, "is_historical": True}
    return {"received_ms": received_ms, "clock_ms": clock_ms}


def symbol_of(model: ServedModel, request: PredictRequest) -> str:
    """The symbol of the body or its context; a model of one symbol needs none.

    Raises:
        DataValidationError: the model knows several symbols and the request names none.
    """
    if request.symbol is not None:
        return request.symbol
    if request.context is not None:
        return request.context.symbol
    if len(model.card.symbols) == 1:
        return model.card.symbols[0]
    raise DataValidationError.at(
        "body.context", f"{model.card.id} knows {', '.join(model.card.symbols)}; say which with `context`"
    )


def matrix(model: ServedModel, columns: FeatureColumns, *, path: str) -> Floats:
    """The rows in the card's order, oldest first.

    Raises:
        DataValidationError: unknown or missing names, or unequal lengths; each with what to do.
    """
    names = model.card.features
    if len(columns) == len(names) and all(name in columns for name in names):
        values = [columns[name] for name in names]
        num = len(values[0])
        if all(len(each) == num for each in values):
            return np.ascontiguousarray(np.array(values, dtype=np.float64).T)
    raise _misfit(model, columns, path=path)


def by_known_names(model: ServedModel, columns: FeatureColumns) -> FeatureColumns:
    """The columns by the model's own names: an expression may be spelt otherwise than the card does."""
    known = {*model.card.features, *model.derivation.base_columns}
    if known.issuperset(columns):
        return columns
    if len(columns) not in (len(model.card.features), len(model.derivation.base_columns)):
        return columns  # whatever the names mean, they do not fit
    names: dict[str, str] = {}
    for name in columns:
        meant = name if name in known else _canonical(name)
        if meant not in known:
            return columns  # one that is unknown is enough: a thousand of them would each be parsed
        names[name] = meant
    if len(set(names.values())) < len(names):
        return columns
    return {names[name]: values for name, values in columns.items()}


@lru_cache(maxsize=4096)
def _canonical(name: str) -> str:
    """An expression as cards spell it; what is none, as it is."""
    try:
        return parse(name).text
    except DataValidationError:
        return name


def _misfit(model: ServedModel, columns: FeatureColumns, *, path: str) -> DataValidationError:
    """What is wrong with the columns: each unknown and missing name, or the lengths."""
    names = model.card.features
    strange = islice((name for name in columns if name not in names), MOST_ERRORS)
    errors = [_unknown(name, names, path) for name in strange]
    errors += [
        {
            "path": f"{path}.{name}",
            "message": f"{name} is missing; {model.card.id} reads {_listed(names)}",
            "code": "missing",
        }
        for name in islice((name for name in names if name not in columns), MOST_ERRORS)
    ]
    lengths = {name: len(values) for name, values in columns.items()}
    if not errors:
        text = ", ".join(f"{name} {length}" for name, length in lengths.items())
        errors = [
            {"path": path, "message": f"all features need the same number of rows; here: {text}", "code": "lengths"}
        ]
    return DataValidationError(f"{errors[0]['path']}: {errors[0]['message']}", details={"errors": errors})


def derived(model: ServedModel, columns: FeatureColumns, as_of_ms: int, *, path: str) -> FeatureColumns:
    """The model's features from the columns that its expressions read, for the bars that have them all.

    The bars are taken to follow one another up to `as_of`, which only the calendar's functions read.

    Raises:
        DataValidationError: unequal lengths, or too few rows for what the expressions reach back.
    """
    lengths = {len(values) for values in columns.values()}
    needed = model.derivation.history + model.card.min_window
    if len(lengths) > 1 or min(lengths) < needed:
        raise DataValidationError.at(
            path,
            f"{model.card.id} evaluates expressions that reach back {model.derivation.history} bars: send at least "
            f"{needed} rows, the same number of each column; {_longest(model)}",
            code="too_few_rows",
        )
    num = lengths.pop()
    last_ms = as_of_ms // model.timeframe_ms * model.timeframe_ms
    opened_ms = last_ms - model.timeframe_ms * np.arange(num, 0, -1)
    found = model.derivation.read(
        {name: np.array(values, dtype=np.float64) for name, values in columns.items()},
        opened_ms=opened_ms,
        runs=np.zeros(num, dtype=np.int64),
    )
    values = np.column_stack([found[name] for name in model.card.features])
    whole = np.asarray(np.isfinite(values).all(axis=1))
    num_whole = num if whole.all() else int(np.argmin(whole[::-1]))
    if num_whole < model.card.min_window:
        raise DataValidationError.at(
            path, "an expression has no value on the newest rows (a division by zero, or nothing that varies); "
            "send other rows", code="incomplete_window",
        )  # fmt: skip
    return {name: found[name][num - num_whole :].tolist() for name in model.card.features}


def _longest(model: ServedModel) -> str:
    """Which feature reaches back the furthest."""
    derivation = model.derivation
    return derivation.needs(max(derivation.parsed, key=lambda name: derivation.parsed[name].history))


def _unknown(name: str, names: tuple[str, ...], path: str) -> dict[str, str]:
    near = close_names(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the model reads {_listed(names)}"
    return {
        "path": f"{path}.{name[:64]}",
        "message": f"the model does not read this feature; {hint}",
        "code": "unknown",
    }


def _listed(names: Sequence[str]) -> str:
    """The first of them, in a sentence that is told for each of many."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _check_timeframe(model: ServedModel, request: PredictRequest) -> None:
    timeframe = request.timeframe or (request.context.timeframe if request.context else None)
    if timeframe is not None and timeframe != model.card.timeframe:
        raise DataValidationError.at(
            "body.timeframe", f"{model.card.id} was trained on {model.card.timeframe} bars; send those"
        )


def _bar_volatility(
    model: ServedModel, symbol: str, columns: Mapping[str, Sequence[float] | Floats], as_of_ms: int
) -> float | None:
    """From the request's own closes, where it has as many as the kernel needs; else unknown.

    The bars are taken to follow one another in the market's time up to `as_of`.
    """
    close = columns.get("close")
    if close is None or len(close) <= EWMA_BARS or min(close) <= 0:
        return None
    close_N = np.array(close[-EWMA_BARS - 1 :])
    back_ms = model.timeframe_ms * np.arange(len(close_N), 0, -1)
    # a moment after each opening, since Sunday's opening and Friday's close are one moment of market time
    opened_ms = calendar.advance(bar_end_ms(model, as_of_ms), 1 - back_ms) - 1
    value = float(model.volatility_of_windows(symbol, opened_ms[None], close_N[None])[0])
    return value if np.isfinite(value) else None


def _about_unknown(
    model: ServedModel, symbol: str, request: PredictRequest, asked_ms: int | None, received_ms: int
) -> Question:
    """A question that can only be abstained from: nothing is fetched for a symbol the model does not know."""
    as_of_ms = received_ms if asked_ms is None else asked_ms
    rows = np.zeros((model.card.lookback, len(model.card.features)))
    clock = _clock(model, asked_ms, received_ms=received_ms)
    return Question(symbol, rows, as_of_ms, request.price, None, as_of_ms, has_known_age=asked_ms is not None, **clock)
