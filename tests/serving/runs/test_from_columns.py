"""Columns to questions: what `question_of` makes of each row's body."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.market import calendar
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.model import ServedModel, bar_end_ms
from ml_workbench_service.serving.predict import prepare
from ml_workbench_service.serving.request_to_windows import question_of
from ml_workbench_service.serving.runs.from_columns import AskedRows, Windows, _volatilities, questions_of

pytestmark = pytest.mark.processor

NOW_MS = to_ms(datetime(2020, 4, 14, 10, 7, tzinfo=UTC))
SYMBOLS = ("EUR/USD", "GBP/USD", "USD/JPY")


@pytest.mark.parametrize("num_symbols", [1, 3])
@pytest.mark.parametrize("lengths", [(10,), (3, 7, 10, 14, 130)])
def test_rows_are_asked_as_their_bodies_are(
    num_symbols: int, lengths: tuple[int, ...], model: ServedModel, history: SymbolHistory
) -> None:
    chance = np.random.default_rng(len(lengths) + num_symbols)
    names, num = model.card.features, 40
    long = history.question(600).x_TF.repeat(20, axis=0)
    columns: dict[str, list[float]] = {name: [] for name in names}
    requests, as_of_ms, prices, positions, symbols, ends = [], [], [], [], [], []
    for row in range(num):
        window = long[: lengths[row % len(lengths)]] * chance.uniform(0.9, 1.1)
        symbol = SYMBOLS[row % num_symbols]
        moment_ms = NO_TIME if row % 4 == 0 else NOW_MS - int(chance.integers(0, 10)) * 1_000_000
        price = None if row % 5 == 0 else float(chance.uniform(1, 2))
        position = None if row % 3 else float(chance.uniform(-1, 1))
        sent = {name: window[:, place].tolist() for place, name in enumerate(names)}
        as_of = None if moment_ms == NO_TIME else datetime.fromtimestamp(moment_ms / 1000, tz=UTC)
        requests.append(
            PredictRequest(
                symbol=symbol, timeframe="1h", features=sent, as_of=as_of, price=price, position=position
            )
        )  # fmt: skip
        for name, values in sent.items():
            columns[name] += values
        as_of_ms.append(moment_ms)
        prices.append(np.nan if price is None else price)
        positions.append(position or 0.0)
        symbols.append(symbol)
        ends.append(len(columns[names[0]]))
    asked = AskedRows(Coded.of(symbols), np.array(as_of_ms), np.array(prices), np.array(positions))
    windows = Windows(
        {name: np.array(values) for name, values in columns.items()}, np.array([0, *ends[:-1]]), np.array(ends)
    )
    run = questions_of(model, asked, windows, received_ms=NOW_MS)
    rows_of = {}
    for group in run.groups:
        rows_of |= dict(zip(group.places.tolist(), group.rows_NTF, strict=True))
    for row, request in enumerate(requests):
        question = question_of(model, request, received_ms=NOW_MS)
        assert question is not None
        alone = prepare(model, question)
        found = replace(run.question(row), x_TF=question.x_TF, prediction_id=question.prediction_id)
        assert replace(found, warnings=question.warnings) == question
        assert run.warnings.value(row) == alone.warnings
        if alone.rows_TF is None:
            assert row not in rows_of
        else:
            assert rows_of[row].dtype == alone.rows_TF.dtype
            assert rows_of[row].tobytes() == alone.rows_TF.tobytes()
    assert len(set(run.prediction_ids)) == num
    assert {len(each) for each in run.prediction_ids} == {32}
    if max(lengths) > 120:
        assert np.isfinite(run.bar_volatility_N).any()


def test_volatilities_of_closes_that_were_sent_are_those_of_each_alone(
    model: ServedModel, history: SymbolHistory
) -> None:
    """Over weekends, moments within a bar, years apart, closes that stand still, and one that is none."""
    chance, num = np.random.default_rng(9), 60
    close = history.table.columns["close"] if hasattr(history.table, "columns") else history.table.features["close"]
    lengths = chance.choice([121, 122, 200, 120, 40], num)
    begins = chance.integers(0, 1_000, num)
    requests, parts, moments = [], [], []
    for row in range(num):
        values = np.array(close[begins[row] : begins[row] + lengths[row]], dtype=np.float64)
        if row % 11 == 3:
            values[:] = 1.1
        if row % 13 == 5:
            values[0] = -1.0
        moment_ms = NOW_MS - int(chance.integers(0, 400)) * (3_600_000 if row % 2 else 86_399_000)
        window = {"signal": values * 0.1, "close": values, "rsi_14": 50 + values}
        moments.append(moment_ms)
        parts.append(window)
        requests.append(
            PredictRequest(
                symbol=SYMBOLS[row % 2], timeframe="1h", as_of=datetime.fromtimestamp(moment_ms / 1000, tz=UTC),
                features={name: each.tolist() for name, each in window.items()},
            )
        )  # fmt: skip
    ends = np.cumsum(lengths)
    columns = {name: np.concatenate([each[name] for each in parts]) for name in model.card.features}
    symbol = Coded.of(SYMBOLS[row % 2] for row in range(num))
    found = _volatilities(model, symbol, Windows(columns, ends - lengths, ends), np.array(moments))
    wanted = []
    for request, window, moment_ms in zip(requests, parts, moments, strict=True):
        value, kept = np.nan, window["close"][-121:]
        if len(kept) == 121 and window["close"].min() > 0:
            back_ms = model.timeframe_ms * np.arange(121, 0, -1)
            opened_ms = calendar.advance(bar_end_ms(model, moment_ms), 1 - back_ms) - 1
            value = float(model.bar_volatility(str(request.symbol), opened_ms, kept)[-1])
        question = question_of(model, request, received_ms=NOW_MS)
        assert question is not None
        assert repr(question.bar_volatility) == repr(None if np.isnan(value) else value)
        wanted.append(value)
    assert found.tobytes() == np.array(wanted).tobytes()
    assert 10 < np.isfinite(found).sum() < num
