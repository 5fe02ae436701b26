"""Prediction path, from a question to the one record: scale, run the network, and say how sure the answer is.

Every path (single, batch, replay) goes through `prepare` and `finish`; only how many windows share a run of the
network differs, and in float32 that changes no bit.

Legend: N questions, T rows, F features.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import constructed, utc_now
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.outcomes import Answered
from ml_workbench_service.contracts.prediction import (
    AbstainReason,
    ActionsByPosition,
    Novelty,
    Precision,
    PredictionMetadata,
    PredictionRecord,
    Role,
    Sample,
    new_prediction_id,
)
from ml_workbench_service.learning.calibration.conformal import NOVELTY_THRESHOLD
from ml_workbench_service.learning.data.windows import part_of
from ml_workbench_service.learning.decoders.decoder import Decoded
from ml_workbench_service.market.trading_series import POSITIONS
from ml_workbench_service.serving.abstain_by_clock import clock_reasons, valid_until_ms
from ml_workbench_service.serving.live_intervals import LiveContext, LiveIntervals
from ml_workbench_service.serving.model import ServedModel

log = logging.getLogger(__name__)

SAMPLE_CLOCK = "sample_clock"
"""The warning on answers by the embedded sample's clock: for trying out, never evidence."""


@dataclass(frozen=True)
class BarPrices:
    """The bar that a question ends with, as fills read it; prices and spread are None where the store has none.

    Attributes:
        spread_open: in price units.
        previous_opened_ms: of the bar right before it; None where that one is missing.
    """

    opened_ms: int
    open: float | None
    close: float
    spread_open: float | None
    previous_opened_ms: int | None


@dataclass(frozen=True)
class Question:
    """One prediction asked for: a symbol's window, when, and what else is known of the bar."""

    symbol: str
    x_TF: Floats  # features in their own units, in the card's order, oldest first
    as_of_ms: int
    price: float | None
    bar_volatility: float | None  # ex-ante standard deviation of one bar's log return
    newest_available_at_ms: int  # when the last row became known
    position: float = 0.0  # what is held already; policies read it
    spread: float | None = None  # the bar's own, in price units
    bar: BarPrices | None = None  # None: the caller sent the columns
    clock: bool = True  # whether the clock's abstentions apply
    clock_ms: int | None = None  # the moment they are decided against; None: `as_of`
    has_known_age: bool = True  # whether features and model can be too old; else only a closed market counts
    received_ms: int | None = None  # None: now
    is_historical: bool = False  # a question about the past
    warnings: tuple[str, ...] = ()
    prediction_id: str = field(default_factory=new_prediction_id)


@dataclass(frozen=True)
class Circumstances:
    """What a record says of how it came about."""

    role: Role
    source: str = "live"
    correlation_id: str = ""
    scaling_factor: float = 1.0
    deployment_id: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A question as the network reads it, with what it means to abstain before looking."""

    question: Question
    rows_TF: Floats32 | None  # None: the symbol is unknown, there is nothing to scale with
    warnings: tuple[str, ...]


def prepare(model: ServedModel, question: Question) -> Prepared:
    """Cuts to the lookback and scales.

    Raises:
        DataValidationError: fewer rows than `min_window`, or a level feature that is not positive.
    """
    return _scaled(model, admitted(model, question))


@dataclass(frozen=True, slots=True)
class Admitted:
    """A question that was checked and is not scaled yet: windows that share a run are scaled together."""

    question: Question
    x_TF: Floats | None  # None: the symbol is unknown, there is nothing to scale with
    warnings: tuple[str, ...]


def admitted(model: ServedModel, question: Question) -> Admitted:
    """Cuts to the lookback.

    Raises:
        DataValidationError: fewer rows than `min_window`.
    """
    card, num_rows = model.card, len(question.x_TF)
    if num_rows < card.min_window:
        raise DataValidationError.at(
            "body.features",
            f"{card.id} needs at least {card.min_window} rows of each feature (best {card.lookback}); send more",
            code="too_few_rows",
            min_window=card.min_window,
            lookback=card.lookback,
        )
    warnings = question.warnings + (("short_window",) if num_rows < card.lookback else ())
    if question.symbol not in model.scaler.symbols:
        return Admitted(question, None, warnings)
    return Admitted(question, question.x_TF[-card.lookback :], warnings)


def _scaled(model: ServedModel, each: Admitted) -> Prepared:
    rows_TF = None if each.x_TF is None else model.scaler.rows(each.question.symbol, each.x_TF)
    return Prepared(each.question, rows_TF, each.warnings)


def prepared_together(model: ServedModel, asked: Sequence[Admitted]) -> list[Prepared | Exception]:
    """Each scaled as alone, or the error of each."""
    try:
        return [*_scaled_together(model, asked)]
    except DataValidationError:
        return [_scaled_or_error(model, each) for each in asked]


def _scaled_or_error(model: ServedModel, each: Admitted) -> Prepared | Exception:
    try:
        return _scaled(model, each)
    except DataValidationError as error:
        return error.kept()


def _scaled_together(model: ServedModel, asked: Sequence[Admitted]) -> list[Prepared]:
    """The windows of a symbol in one go: a row's result does not depend on the rows around it."""
    by_symbol: dict[str, list[Floats]] = {}
    for each in asked:
        if each.x_TF is not None:
            by_symbol.setdefault(each.question.symbol, []).append(each.x_TF)
    if all(len(windows) == 1 for windows in by_symbol.values()):
        return [_scaled(model, each) for each in asked]
    rows_of = {name: model.scaler.rows(name, np.concatenate(windows)) for name, windows in by_symbol.items()}
    done = dict.fromkeys(by_symbol, 0)
    prepared = []
    for each in asked:
        rows_TF = None
        if each.x_TF is not None:
            name, begin = each.question.symbol, done[each.question.symbol]
            end = done[name] = begin + len(each.x_TF)
            rows_TF = rows_of[name][begin:end]
        prepared.append(Prepared(each.question, rows_TF, each.warnings))
    return prepared


@dataclass(frozen=True)
class NetworkOutput:
    """What the network said to one question; a policy also what it says to each position that may be held."""

    outputs_K: Floats32 | None
    last_row_F: Floats32 | None
    actions: ActionsByPosition | None = None


NO_OUTPUT = NetworkOutput(None, None)


def ask(model: ServedModel, asked: Sequence[Prepared]) -> list[NetworkOutput]:
    """The float32 network's word on windows of one length, in one run; rows do not change each other's bits.

    A policy reads each window four times: for the position that the question names, and for -1, 0 and 1.
    """
    rows_NTF = np.stack([_rows(each) for each in asked])
    if not model.decoder.holds_positions:
        raw = model.float32.predict(rows_NTF, None)
        return [
            NetworkOutput(outputs_K, row_F) for outputs_K, row_F in zip(raw.outputs_NK, raw.last_rows_NF, strict=True)
        ]
    positions_N4 = np.array([(each.question.position, *POSITIONS) for each in asked], dtype=np.float32)
    raw = model.float32.predict(np.repeat(rows_NTF, positions_N4.shape[1], axis=0), positions_N4.reshape(-1))
    outputs_N4K = raw.outputs_NK.reshape(*positions_N4.shape, -1)
    last_rows_NF = raw.last_rows_NF[:: positions_N4.shape[1]]
    return [
        NetworkOutput(outputs_4K[0], row_F, next_actions(model, outputs_4K[1:]))
        for outputs_4K, row_F in zip(outputs_N4K, last_rows_NF, strict=True)
    ]


def ask_alone(model: ServedModel, asked: Prepared) -> NetworkOutput:
    """The int8 network's word on one window: one run for each position, since its rows do change each other's bits."""
    rows_1TF = _rows(asked)[None]
    raw = model.single.predict(rows_1TF, np.array([asked.question.position], dtype=np.float32))
    if not model.decoder.holds_positions:
        return NetworkOutput(raw.outputs_NK[0], raw.last_rows_NF[0])
    each_K = [model.single.predict(rows_1TF, np.array([held], dtype=np.float32)).outputs_NK[0] for held in POSITIONS]
    return NetworkOutput(raw.outputs_NK[0], raw.last_rows_NF[0], next_actions(model, np.stack(each_K)))


def next_actions(model: ServedModel, outputs_3K: Floats32) -> ActionsByPosition:
    """What a policy says to one who holds -1, 0 and 1, of its outputs for these."""
    short, flat, long = model.decoder.next_positions(outputs_3K)
    return cast(ActionsByPosition, (short, flat, long))


def answer(model: ServedModel, question: Question, circumstances: Circumstances) -> PredictionRecord:
    """One record, by the network for single windows (int8 where it was accepted)."""
    return answered(model, question, circumstances).record


def answered(
    model: ServedModel, question: Question, circumstances: Circumstances, *, intervals: LiveIntervals | None = None
) -> Answered:
    """`answer`, with what the ledger keeps beside the record.

    With `intervals`, a live champion's interval is widened by what came true of those before it.
    """
    output = asked_together(model, [prepared := prepare(model, question)])[0]
    if isinstance(output, Exception):
        raise output
    return answered_single(model, prepared, circumstances, output, intervals=intervals)


def answered_single(
    model: ServedModel,
    prepared: Prepared,
    circumstances: Circumstances,
    output: NetworkOutput,
    *,
    intervals: LiveIntervals | None = None,
    precision: Precision | None = None,
) -> Answered:
    """The record of a single question around what the network said to it, whoever shared the run.

    Args:
        precision: of that network; None: the one for single windows.
    """
    live = _live_context_of(model, prepared.question, circumstances, intervals)
    prepared = _with_volatility(prepared, live)
    precision = model.precision if precision is None else precision
    record = finish(model, prepared, circumstances, output=output, precision=precision, live=live)
    return _with_inputs(model, prepared.question, record, output)


def asked_together(model: ServedModel, asked: Sequence[Prepared | Exception]) -> list[NetworkOutput | Exception]:
    """What the network for single windows says to each, or the error of each, which may be there already.

    In float32 windows of one length share a run; where that fails each is asked alone, so that one which cannot be
    answered fails alone. int8 answers every window alone, so that no answer depends on who else was asking.
    """
    found: dict[int, NetworkOutput | Exception] = {}
    whole = {number: each for number, each in enumerate(asked) if isinstance(each, Prepared)}
    for numbers in _by_length(whole).values():
        if model.precision == "fp32" and len(numbers) > 1:
            try:
                found |= dict(zip(numbers, ask(model, [whole[number] for number in numbers]), strict=True))
                continue
            except Exception as error:
                log.warning("a run of %d windows failed, each is asked alone: %s", len(numbers), error)
        for number in numbers:
            try:
                one = whole[number]
                found[number] = ask(model, [one])[0] if model.precision == "fp32" else ask_alone(model, one)
            except Exception as error:
                found[number] = error
    return [each if isinstance(each, Exception) else found.get(number, NO_OUTPUT) for number, each in enumerate(asked)]


def _by_length(asked: Mapping[int, Prepared]) -> dict[int, list[int]]:
    """The numbers of the windows of each length; what has no rows is not asked."""
    by_length: dict[int, list[int]] = {}
    for number, prepared in asked.items():
        if prepared.rows_TF is not None:
            by_length.setdefault(len(prepared.rows_TF), []).append(number)
    return by_length


def finish(
    model: ServedModel,
    prepared: Prepared,
    circumstances: Circumstances,
    *,
    output: NetworkOutput,
    precision: Precision,
    live: LiveContext | None = None,
) -> PredictionRecord:
    """The whole record around what the network said; no outputs mean that the symbol is unknown."""
    card, question = model.card, prepared.question
    decoded, novelty, reasons = _decode(model, question, output, live)
    abstains = bool(reasons) or decoded is None
    stated = None if abstains else decoded
    due_ms = valid_until_ms(model, question.as_of_ms)
    bar_open, bar_open_price, close, spread_open, previous_open = bar_fields(question.bar)
    record = constructed(
        PredictionRecord,
        {
            "prediction_id": question.prediction_id,
            "model_id": card.id,
            "version": card.version,
            "version_id": card.version,
            "role": circumstances.role,
            "symbol": question.symbol,
            "timeframe": card.timeframe,
            "target": card.target,
            "as_of": moment(question.as_of_ms),
            "valid_until": moment(due_ms),
            "timestamp": utc_now() if question.received_ms is None else moment(question.received_ms),
            "price": question.price,
            "bar_open": bar_open,
            "open": bar_open_price,
            "close": close,
            "spread_open": spread_open,
            "prev_bar_open": previous_open,
            "source": circumstances.source,
            "sample": _sample(model, question),
            "status": "abstain" if abstains else "ok",
            "prediction": None if stated is None else stated.prediction,
            "label": None if stated is None else stated.label,
            "direction": "hold" if stated is None else stated.direction,
            "confidence": None if stated is None else stated.confidence,
            "outputs": dict.fromkeys(model.record_outputs) if stated is None else {**stated.outputs},
            "interval": None if stated is None else stated.interval,
            "novelty": novelty,
            "drivers": () if stated is None else stated.drivers,
            "warnings": prepared.warnings + (() if decoded is None else decoded.warnings),
            "abstain_reasons": reasons,
            "scaling_factor": circumstances.scaling_factor,
            "metadata": _metadata(model, question, circumstances, precision, decoded, stated, output),
        },
    )
    if live is not None:
        live.stated(record.interval, due_ms=due_ms, bar_ms=model.timeframe_ms, horizon=model.reach)
    return record


def _metadata(
    model: ServedModel,
    question: Question,
    circumstances: Circumstances,
    precision: Precision,
    decoded: Decoded | None,
    stated: Decoded | None,
    output: NetworkOutput,
) -> PredictionMetadata:
    """How the answer was made, and what filling it costs."""
    return constructed(
        PredictionMetadata,
        {
            "precision": precision,
            "precision_reason": model.precision_reason or None,
            "data_source": model.card.data_source,
            "correlation_id": circumstances.correlation_id,
            "fill": model.card.fill,
            "filling_rule": "next_bar",
            "volatility": None if decoded is None else decoded.volatility,
            "strength": None if stated is None else stated.strength,
            "actions_by_position": None if stated is None else output.actions,
            "sizing": None if stated is None else stated.wanted,
            "deployment_id": circumstances.deployment_id,
            "costs": model.costs_at(question.symbol, question.spread, as_of_ms=question.as_of_ms),
        },
    )


def _sample(model: ServedModel, question: Question) -> Sample:
    """Which part the answer falls into, or that the question is about the past."""
    if question.is_historical:
        return "historical"
    return part_of(question.as_of_ms, model.borders_ms, last_ms=model.last_available_at_ms)


def bar_fields(
    bar: BarPrices | None,
) -> tuple[datetime | None, float | None, float | None, float | None, datetime | None]:
    """What a record says of its newest bar: `bar_open`, `open`, `close`, `spread_open`, `prev_bar_open`."""
    if bar is None:
        return None, None, None, None, None
    previous = None if bar.previous_opened_ms is None else moment(bar.previous_opened_ms)
    return moment(bar.opened_ms), bar.open, bar.close, bar.spread_open, previous


def _with_inputs(model: ServedModel, question: Question, record: PredictionRecord, output: NetworkOutput) -> Answered:
    return Answered(record, output.last_row_F, question.bar_volatility, model.reference_price.get(question.symbol))


def is_live(circumstances: Circumstances) -> bool:
    """Whether the live version answers the present, and no replay."""
    return circumstances.role == "champion" and circumstances.source == "live"


def _live_context_of(
    model: ServedModel, question: Question, circumstances: Circumstances, intervals: LiveIntervals | None
) -> LiveContext | None:
    """Where the question stands among those that the live version is asked; None for every other answer."""
    if intervals is None or not is_live(circumstances):
        return None
    if question.is_historical or question.as_of_ms <= model.last_available_at_ms:
        return None
    return intervals.ask(model, question.symbol, as_of_ms=question.as_of_ms, price=question.price)


def _with_volatility(prepared: Prepared, live: LiveContext | None) -> Prepared:
    """Where the features brought none, that of the prices which questions brought so far."""
    if prepared.question.bar_volatility is not None or live is None or (volatility := live.bar_volatility) is None:
        return prepared
    return replace(prepared, question=replace(prepared.question, bar_volatility=volatility))


def _decode(
    model: ServedModel, question: Question, output: NetworkOutput, live: LiveContext | None
) -> tuple[Decoded | None, Novelty | None, tuple[AbstainReason, ...]]:
    """What the outputs say, how unusual the input is, and the reasons to abstain."""
    reasons = _clock_reasons(model, question) if question.clock else []
    if output.outputs_K is None or output.last_row_F is None:
        return None, None, ("unknown_symbol", *reasons)
    context = model.context(
        question.symbol,
        price=question.price,
        bar_volatility=question.bar_volatility,
        position=question.position,
        spread=question.spread,
        as_of_ms=question.as_of_ms,
    )
    if live is not None and (scale := model.decoder.interval_scale(context)) is not None:
        context = replace(context, widening=live.widening(scale))
    decoded = model.decoder.decode(output.outputs_K, context)
    novelty = None if model.novelty is None else model.novelty.novelty(output.last_row_F)
    if novelty is not None and novelty.score > NOVELTY_THRESHOLD and model.decoder.abstains_when_novel:
        reasons.insert(0, "novel_input")
    return decoded, novelty, (*reasons, *decoded.reasons)


def _clock_reasons(model: ServedModel, question: Question) -> list[AbstainReason]:
    return clock_reasons(
        model,
        now_ms=question.as_of_ms if question.clock_ms is None else question.clock_ms,
        known_ms=question.newest_available_at_ms,
        has_known_age=question.has_known_age,
        has_bar=question.bar is not None,
        may_be_prompt=question.clock_ms is not None,
    )


def moment(moment_ms: int) -> datetime:
    """Of milliseconds since the epoch."""
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC)


def _rows(prepared: Prepared) -> Floats32:
    assert prepared.rows_TF is not None
    return prepared.rows_TF
