"""Backfill: a recording of the past, bar by bar, through exactly the predict path, into arrays instead of the queue.

A recording says of each bar what a replay of the same version publishes, to the bit. float32 answers many windows in
one run, which changes none of them; a version that serves int8, and a policy, which must be told what it holds, are
asked one window at a time, as a replay asks them.

Bars that taught the model something are left out unless they are asked for: an agent that learns from predictions of
the training part learns to trust what the model cannot repeat.

Legend: M records.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms, normal_symbol, to_ms
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Costs, FeatureStore, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.recordings import OUT_OF_SAMPLE, SAMPLES, Recording
from ml_workbench_service.learning.data.windows import part_of
from ml_workbench_service.serving.history import fetch_range, merged_questions
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Question, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many

BATCH = 256
REPORT_EVERY_S = 0.5
_RECORDED = Circumstances(role="champion", source="recording")
_COST_FIELDS = tuple(Costs.model_fields)


def fetch_past(
    model: ServedModel, store: FeatureStore, *, symbols: Sequence[str], start_ms: int, end_ms: int
) -> list[FeatureTable]:
    """The bars that recording a range needs: those within, and before them what its first window reaches back to.

    Raises:
        DataValidationError: a symbol the model does not know, or no bars.
        UpstreamError, UpstreamTimeoutError: the feature store failed.
    """
    wanted = [normal_symbol(symbol) for symbol in symbols]
    for place, symbol in enumerate(wanted):
        _check_known(model, symbol, path=f"body.base.symbols.{place}")
    return fetch_range(model, store, symbols=wanted, start_ms=start_ms, end_ms=end_ms)


def record(
    model: ServedModel,
    tables: Sequence[FeatureTable],
    *,
    start_ms: int,
    allow_in_sample: bool = False,
    report: Report | None = None,
) -> Recording:
    """What the version says of every bar opened at or after `start_ms`, in the order in which bars became known.

    Args:
        model: the version.
        tables: of distinct symbols, with the bars before `start_ms` that windows reach back to (`fetch_past`).
        start_ms: first opening.
        allow_in_sample: also keep predictions for the parts train, stop and calibrate; `sample_M` tells them apart.
        report: hears how far it is; may cancel.

    Raises:
        DataValidationError: an unknown symbol, no bar with a whole window in the range, or only such as the model
            learnt from; the message names the first moment that can be used.
        PredictionError: the runtime failed.
        JobCancelled: somebody asked for it.
    """
    for table in tables:
        _check_known(model, table.symbol, path="body.base.symbols")
    backfill = _Backfill(model, allow_in_sample=allow_in_sample)
    total = sum(int(np.sum(table.opened_ms >= start_ms)) for table in tables)
    rows = _Rows(tuple(table.symbol for table in tables))
    reported = time.monotonic()
    asked = backfill.asked(tables, start_ms)
    while batch := list(islice(asked, BATCH)):
        if report is not None:
            report.check()
        rows.take(backfill.answered(batch))
        if report is not None and time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            report(backfill.num_seen, total)
    if not len(rows):
        raise _nothing(model, backfill)
    return rows.recording(model, num_skipped=backfill.num_skipped, num_in_sample=backfill.num_in_sample)


def first_usable_ms(model: ServedModel) -> int:
    """Bars that become known after this moment taught the model nothing: the border of its test part."""
    return int(model.borders_ms["test"])


def _check_known(model: ServedModel, symbol: str, *, path: str) -> None:
    if symbol not in model.scaler.symbols:
        raise DataValidationError.at(
            path, f"{model.card.id} was not trained on {symbol}; it knows {', '.join(model.card.symbols)}",
            code="unknown_symbol",
        )  # fmt: skip


class _Backfill:
    """The way through the bars: what each asks, what it is answered, and what is left out."""

    def __init__(self, model: ServedModel, *, allow_in_sample: bool) -> None:
        self._model = model
        self._allow_in_sample = allow_in_sample
        self._alone = model.decoder.holds_positions or model.precision == "int8"
        self._held: dict[str, float] = {}  # what a policy has made of each symbol so far
        self.num_seen = 0
        self.num_skipped = 0
        self.num_in_sample = 0

    def asked(self, tables: Sequence[FeatureTable], start_ms: int) -> Iterator[tuple[Question, bool]]:
        """Questions in the order of a replay, and whether bars are missing before them.

        A bar that became known no later than its symbol's last one is left out: agents count it as late.
        """
        newest, after_gap = [-1] * len(tables), [False] * len(tables)
        for available_at_ms, place, question in merged_questions(self._model, tables, from_ms=start_ms, job_id=""):
            self.num_seen += 1
            if question is None:
                self.num_skipped += 1
                after_gap[place] = True
                continue
            if available_at_ms <= newest[place]:
                continue
            newest[place] = available_at_ms
            sample = part_of(available_at_ms, self._model.borders_ms, last_ms=self._model.last_available_at_ms)
            if sample not in OUT_OF_SAMPLE and not self._allow_in_sample:
                self.num_in_sample += 1
                continue
            yield question, after_gap[place]
            after_gap[place] = False

    def answered(self, batch: Sequence[tuple[Question, bool]]) -> list[PredictionRecord]:
        """Their records, as a replay makes them."""
        if not self._alone:
            return answer_many(self._model, [prepare(self._model, question) for question, _ in batch], _RECORDED)
        records = []
        for question, after_gap in batch:
            position = 0.0 if after_gap else self._held.get(question.symbol, 0.0)
            told = answer(self._model, replace(question, position=position), _RECORDED)
            if self._model.decoder.holds_positions:
                self._held[question.symbol] = told.prediction or 0.0  # an abstention is flat
            records.append(told)
        return records


def _nothing(model: ServedModel, backfill: _Backfill) -> DataValidationError:
    """Why a recording is empty, and what to send instead."""
    first = iso_of_ms(first_usable_ms(model))
    if backfill.num_in_sample:
        return DataValidationError.at(
            "body.base.start_date",
            f"{model.card.id} {model.card.version} learnt from every bar of this range, so an agent would learn from "
            f"predictions that the model cannot repeat; send an end_date after {first}, where its test part begins, or "
            "allow_in_sample",
            code="in_sample",
            first_usable=first,
        )
    text = "no bar opens within this range; is the market closed then? Send a longer one"
    if backfill.num_skipped:
        text = f"no bar of this range has {model.card.lookback} whole bars, a window, behind it; send a longer range"
    return DataValidationError.at("body.base.start_date", text, code="empty_range")


class _Rows:
    """Columns of a recording, a batch of records at a time."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self._symbols = symbols
        self._numbers: list[Floats] = []
        self._whole: list[Ints] = []

    def __len__(self) -> int:
        return sum(map(len, self._numbers))

    def take(self, records: Sequence[PredictionRecord]) -> None:
        """Takes what an agent reads of each record."""
        self._numbers.append(np.array([_numbers(each) for each in records], dtype=np.float64))
        whole = [
            (
                to_ms(each.as_of),
                self._symbols.index(each.symbol),
                each.status == "abstain",
                each.abstain_reasons == ("market_closed",),
                SAMPLES.index(each.sample),
                -1 if each.bar_open is None else to_ms(each.bar_open),
            )
            for each in records
        ]
        self._whole.append(np.array(whole, dtype=np.int64))

    def recording(self, model: ServedModel, *, num_skipped: int, num_in_sample: int) -> Recording:
        """The whole as arrays."""
        rows, whole = np.concatenate(self._numbers), np.concatenate(self._whole)
        return Recording(
            model_id=model.card.id,
            version=model.card.version,
            timeframe=model.card.timeframe,
            symbols=self._symbols,
            fill=model.card.fill,
            data_source=model.card.data_source,
            as_of_ms_M=whole[:, 0].copy(),
            symbol_M=whole[:, 1].copy(),
            price_M=rows[:, 0].copy(),
            opened_ms_M=whole[:, 5].copy(),
            open_M=rows[:, 1].copy(),
            spread_open_M=rows[:, 2].copy(),
            prediction_M=rows[:, 3].copy(),
            volatility_M=rows[:, 4].copy(),
            width_M=rows[:, 5].copy(),
            strength_M=rows[:, 6].copy(),
            abstained_M=whole[:, 2].astype(np.bool_),
            kept_M=whole[:, 3].astype(np.bool_),
            sample_M=whole[:, 4].copy(),
            costs_M5=rows[:, 7:].copy(),
            num_skipped=num_skipped,
            num_in_sample=num_in_sample,
        )


def _numbers(each: PredictionRecord) -> list[float]:
    """Close, open and its spread, prediction, volatility, width, strength, five costs; NaN where there is none."""
    metadata = each.metadata
    assert metadata.costs is not None, "a symbol with a scale has costs"
    width = None if each.interval is None else each.interval.upper - each.interval.lower
    charges = [getattr(metadata.costs, name) for name in _COST_FIELDS]
    numbers = [
        each.price,
        each.open,
        each.spread_open,
        each.prediction,
        metadata.volatility,
        width,
        metadata.strength,
        *charges,
    ]
    return [math.nan if value is None else float(value) for value in numbers]
