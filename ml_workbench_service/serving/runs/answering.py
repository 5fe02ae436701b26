"""Prediction path of a run: from questions to records as columns, the same to the bit as `predict.finish` says of each.

    ask the networks ─► clock, sample, costs ─► live intervals, in order ─► decode, novelty ─► what is stated

Legend: N questions, M of them that the network was asked (a symbol may be unknown), T rows, F features, K outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.market import Bools, Costs, Floats, Ints
from ml_workbench_service.contracts.prediction import (
    AbstainReason,
    Interval,
    Novelty,
    PredictionMetadata,
    PredictionRecord,
)
from ml_workbench_service.contracts.runs.columns import ABSENT, Coded, Column, Moments, Nested, Numbers, Words
from ml_workbench_service.contracts.runs.records import LastRows, RecordRun, in_order, same_everywhere
from ml_workbench_service.learning.calibration.conformal import NOVELTY_THRESHOLD
from ml_workbench_service.learning.data.windows import SAMPLES, Part
from ml_workbench_service.learning.decoders.decoder import DecodedRun, DecodingRun
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import round_trip_costs, session_spread
from ml_workbench_service.serving.abstain_by_clock import reasons_of_run
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import ServedModel, costs_of_record
from ml_workbench_service.serving.predict import (
    NO_OUTPUT,
    Circumstances,
    Prepared,
    answered_single,
    bar_fields,
    moment,
)
from ml_workbench_service.serving.runs.live import adapted
from ml_workbench_service.serving.runs.network import NetworkRun, ask_run
from ml_workbench_service.serving.runs.questions import QuestionRun

FEWEST_ROWS = 8
"""For fewer, columns take longer than a record each."""
_LATER_PARTS: tuple[Part, ...] = ("validation", "calibration", "test")
AnyColumn = TypeVar("AnyColumn", bound=Column)
_SAMPLES = (SAMPLES["train"], *(SAMPLES[part] for part in _LATER_PARTS), "live", "historical")


def answer_many(
    model: ServedModel, questions: Sequence[Prepared], circumstances: Circumstances
) -> list[PredictionRecord]:
    """Records by the float32 network; bit-equal to one at a time in float32."""
    return [] if not questions else answer_run(model, QuestionRun.of(questions), circumstances).records()


def answer_run(
    model: ServedModel,
    run: QuestionRun,
    circumstances: Circumstances,
    *,
    intervals: LiveIntervals | None = None,
) -> RecordRun:
    """The records of at least one question, by the float32 network.

    With `intervals`, a live champion's are widened by what came true of those before, the run's own among them.
    """
    network = ask_run(model, run)
    if len(run) < FEWEST_ROWS:
        return _few(model, run, network, circumstances, intervals)
    costs = _costs(model, run)
    contexts = adapted(
        model, run, network, _contexts(model, run, network, costs), circumstances=circumstances, intervals=intervals
    )
    due_ms_N = calendar.advance(run.as_of_ms_N, model.reach * model.timeframe_ms)
    decoded = _decoded(model, run, network, contexts)
    columns = {**_about(model, run, circumstances, due_ms_N), **decoded.columns}
    columns["metadata"] = Nested(
        PredictionMetadata,
        in_order(PredictionMetadata, {**_made_by(model, circumstances, len(run)), **decoded.metadata, "costs": costs}),
    )
    volatility_N = run.bar_volatility_N.copy()
    volatility_N[network.places_M] = contexts.bar_volatility_N
    return RecordRun(
        in_order(PredictionRecord, columns),
        LastRows(network.last_rows_MF, decoded.rows_N),
        Numbers(volatility_N),
        run.symbol.mapped(model.reference_price.get),
    )


def _few(
    model: ServedModel, run: QuestionRun, network: NetworkRun, circumstances: Circumstances,
    intervals: LiveIntervals | None,
) -> RecordRun:  # fmt: skip
    """The answers one by one."""
    outputs = {place: network.output(row) for row, place in enumerate(network.places_M.tolist())}
    return RecordRun.of(
        [
            answered_single(
                model, Prepared(run.question(number), None, run.warnings.value(number)), circumstances,
                outputs.get(number, NO_OUTPUT), intervals=intervals, precision="fp32",
            )
            for number in range(len(run))
        ]
    )  # fmt: skip


def _about(model: ServedModel, run: QuestionRun, circumstances: Circumstances, due_ms_N: Ints) -> dict[str, Column]:
    """What a record says of its question."""
    card, num = model.card, len(run)
    same = {
        "model_id": card.id, "version": card.version, "version_id": card.version, "role": circumstances.role,
        "timeframe": card.timeframe, "target": card.target, "source": circumstances.source,
        "scaling_factor": circumstances.scaling_factor,
    }  # fmt: skip
    return {
        "prediction_id": Words(run.prediction_ids),
        **same_everywhere(same, num),
        "symbol": run.symbol,
        "as_of": Moments(run.as_of_ms_N),
        "valid_until": Moments(due_ms_N),
        "timestamp": _received(run.received_ms_N),
        "price": Numbers(run.price_N),
        **_bars(run),
        "sample": _samples(model, run),
    }


def _made_by(model: ServedModel, circumstances: Circumstances, num: int) -> dict[str, Column]:
    """What a record's metadata say of all answers of the run."""
    return same_everywhere(
        {
            "precision": "fp32",
            "precision_reason": model.precision_reason or None,
            "data_source": model.card.data_source,
            "correlation_id": circumstances.correlation_id,
            "fill": model.card.fill,
            "filling_rule": "next_bar",
            "deployment_id": circumstances.deployment_id,
        },
        num,
    )


@dataclass(frozen=True)
class _Decoded:
    """What the outputs come to: columns of the record and of its metadata.

    Attributes:
        rows_N: each question's row of the network's; `ABSENT` where it was not asked.
    """

    columns: dict[str, Column]
    metadata: dict[str, Column]
    rows_N: Ints


def _decoded(model: ServedModel, run: QuestionRun, network: NetworkRun, contexts: DecodingRun) -> _Decoded:
    num, num_asked = len(run), len(network.places_M)
    rows_N = np.full(num, ABSENT)
    rows_N[network.places_M] = np.arange(num_asked)
    is_known_N = rows_N >= 0
    decoded = model.decoder.decode_run(network.outputs_MK, contexts) if num_asked else _nothing(model)
    novelty = _novelty(model, network, rows_N)
    reasons = _reasons(model, run, is_known_N, novelty, _taken(decoded.reasons, rows_N))
    is_stated_N = np.array([not each for each in reasons.choices])[reasons.codes_N]
    all_stated = bool(is_stated_N.all())

    def stated(column: Column) -> Column:
        found = _taken(column, rows_N)
        return found if all_stated else found.where(is_stated_N)

    outputs = _taken(decoded.outputs, rows_N)
    direction, drivers = _taken(decoded.direction, rows_N), _taken(decoded.drivers, rows_N)
    warnings = _taken(decoded.warnings, rows_N)
    columns: dict[str, Column] = {
        "status": Coded(("abstain", "ok"), is_stated_N.astype(np.int64)),
        "prediction": stated(decoded.prediction),
        "label": stated(decoded.label),
        "direction": direction if all_stated else direction.where(is_stated_N, "hold"),
        "confidence": stated(decoded.confidence),
        "outputs": replace(outputs if all_stated else outputs.each_where(is_stated_N), is_there_N=True),
        "interval": stated(decoded.interval),
        "novelty": novelty,
        "drivers": drivers if all_stated else drivers.where(is_stated_N, ()),
        "warnings": Coded.joined(lambda own, more: own + (more or ()), run.warnings, warnings),
        "abstain_reasons": reasons,
    }
    actions = Coded.same(None, num_asked)
    if network.actions_M is not None:
        actions = Coded.of(network.actions_M)
    metadata = {
        "volatility": _taken(decoded.volatility, rows_N),
        "strength": stated(decoded.strength),
        "actions_by_position": stated(actions),
        "sizing": stated(decoded.wanted),
    }
    return _Decoded(columns, metadata, rows_N)


def _taken(column: AnyColumn, rows_N: Ints) -> AnyColumn:
    """A column of the network's rows by question; the same where each was asked, in its order."""
    if len(rows_N) and (rows_N == np.arange(len(rows_N))).all():
        return column
    return cast(AnyColumn, column.taken(rows_N))


def _novelty(model: ServedModel, network: NetworkRun, rows_N: Ints) -> Nested:
    if model.novelty is not None and len(network.places_M):
        return _taken(model.novelty.novelties(network.last_rows_MF), rows_N)
    none = dict.fromkeys(Novelty.model_fields, Coded.same(None, len(rows_N)))
    return Nested(Novelty, none, is_there_N=False)


def _reasons(model: ServedModel, run: QuestionRun, is_known_N: Bools, novelty: Nested, of_decoder: Coded) -> Coded:
    """Why each answer abstains: the unknown symbol or the novel input, the clock, what the decoder says."""
    is_novel_N = np.zeros(len(run), dtype=np.bool_)
    score = novelty.fields["score"]
    if isinstance(score, Numbers) and model.decoder.abstains_when_novel:
        is_novel_N = is_known_N & (score.values_N > NOVELTY_THRESHOLD)
    is_live_N = run.clock_ms_N != NO_TIME
    clock = reasons_of_run(
        model,
        now_ms_N=np.where(is_live_N, run.clock_ms_N, run.as_of_ms_N),
        known_ms_N=run.newest_available_at_ms_N,
        has_known_age_N=run.has_known_age_N,
        has_bar_N=False if run.bars is None else np.array([each is not None for each in run.bars]),
        may_be_prompt_N=is_live_N,
    )  # fmt: skip
    if not run.clock_N.all():
        clock = clock.where(run.clock_N, ())
    first: tuple[tuple[AbstainReason, ...], ...] = ((), ("novel_input",), ("unknown_symbol",))
    before = Coded(first, np.where(is_known_N, is_novel_N.astype(np.int64), 2))
    return Coded.joined(lambda one, two, three: one + two + (three or ()), before, clock, of_decoder)


def _nothing(model: ServedModel) -> DecodedRun:
    """Of no window at all: every symbol is unknown."""
    none, nothing = Coded((None,), np.zeros(0, dtype=np.int64)), Numbers(np.zeros(0))
    absent = {name: Coded((None,), np.zeros(0, dtype=np.int64)) for name in Interval.model_fields}
    return DecodedRun(
        prediction=nothing,
        outputs=Nested(None, dict.fromkeys(model.record_outputs, nothing)),
        direction=none,
        confidence=nothing,
        label=none,
        interval=Nested(Interval, absent, is_there_N=False),
        volatility=nothing,
        strength=nothing,
        wanted=none,
        drivers=none,
        reasons=none,
        warnings=none,
    )


def _contexts(model: ServedModel, run: QuestionRun, network: NetworkRun, costs: Coded) -> DecodingRun:
    """What is known beside the outputs of the questions that the network was asked."""
    places = network.places_M
    symbols, codes_M = run.symbol.choices, run.symbol.codes_N[places]
    scale_of = [model.scaler.symbols[each].label_scale_K if each in model.scaler.symbols else None for each in symbols]
    num_labels = next((len(each) for each in scale_of if each is not None), 0)
    scale_SK = np.array([np.full(num_labels, np.nan) if each is None else each for each in scale_of])
    reference_S = np.array([model.reference_price.get(each, np.nan) for each in symbols])
    price_M = run.price_N[places]
    asked = Coded.joined(lambda symbol, each: (symbol, each), run.symbol, costs).taken(places)
    used = Coded.joined(lambda each: each, asked) if len(places) else asked
    return DecodingRun(
        label_scale_NK=scale_SK.reshape(len(symbols), num_labels)[codes_M],
        bar_volatility_N=run.bar_volatility_N[places],
        dead_zone_N=_dead_zones(used, np.where(np.isnan(price_M), reference_S[codes_M], price_M)),
        position_N=run.position_N[places],
        widening_N=np.ones(len(places)),
        size_weight_N=np.array([model.decoder.sizing.weight(each) for each in symbols])[codes_M],
    )


def _dead_zones(costs: Coded, prices_M: Floats) -> Floats:
    if not len(prices_M):
        return prices_M
    return round_trip_costs(costs.choices, costs.codes_N, prices_M)


def _costs(model: ServedModel, run: QuestionRun) -> Coded:
    """`ServedModel.costs_at` of each question."""
    codes_N = np.zeros(len(run), dtype=np.int64)
    choices: list[Costs | None] = [None]
    for code, symbol in enumerate(run.symbol.choices):
        costs = model.costs.get(symbol)
        rows = np.flatnonzero(run.symbol.codes_N == code)
        if costs is None or not len(rows):
            continue
        own_N = run.spread_N[rows]
        of_session_N = session_spread(costs, symbol, run.as_of_ms_N[rows], calendar=model.card.calendar)
        spreads, codes = np.unique(np.where(np.isnan(own_N), of_session_N, own_N), return_inverse=True)
        codes_N[rows] = codes + len(choices)
        choices += [
            costs_of_record(
                costs, symbol, spread=None if np.isnan(each) else float(each), as_of_ms=None,
                calendar=model.card.calendar,
            )
            for each in spreads
        ]  # fmt: skip
    return Coded(tuple(choices), codes_N)


def _samples(model: ServedModel, run: QuestionRun) -> Coded:
    """Which part each answer falls into, as `windows.part_of` says, or that its question is about the past."""
    as_of_ms_N = run.as_of_ms_N
    codes_N = np.zeros(len(run), dtype=np.int64)
    for code, part in enumerate(_LATER_PARTS, 1):
        codes_N[as_of_ms_N > model.borders_ms[part]] = code
    codes_N[as_of_ms_N > model.last_available_at_ms] = len(_LATER_PARTS) + 1
    codes_N[run.is_historical_N] = len(_LATER_PARTS) + 2
    return Coded(_SAMPLES, codes_N)


def _received(received_ms_N: Ints) -> Column:
    is_known_N = received_ms_N != NO_TIME
    if is_known_N.all():
        if (received_ms_N == received_ms_N[0]).all():
            return Coded.same(moment(int(received_ms_N[0])), len(received_ms_N))
        return Moments(received_ms_N)
    now = utc_now()
    return Coded.of(moment(each) if each != NO_TIME else now for each in received_ms_N.tolist())


def _bars(run: QuestionRun) -> dict[str, Column]:
    """What records say of their newest bars."""
    names = ("bar_open", "open", "close", "spread_open", "prev_bar_open")
    if run.bars is None:
        return same_everywhere(dict.fromkeys(names), len(run))
    fields = zip(*map(bar_fields, run.bars), strict=True)
    return {name: Coded.of(values) for name, values in zip(names, fields, strict=True)}
