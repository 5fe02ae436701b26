"""A row of an Arrow chunk, or a body of a JSON batch, is taken as columns exactly where it is right by itself."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import PlatformError
from ml_workbench_service.api.batches.rows import Bars, Chunk
from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import admitted
from ml_workbench_service.serving.request_to_windows import question_of
from ml_workbench_service.serving.runs.from_columns import Windows, questions_of
from ml_workbench_service.serving.runs.from_requests import columns_of

pytestmark = pytest.mark.processor

NOW_MS = to_ms(datetime(2020, 4, 14, 10, 7, tzinfo=UTC))
SYMBOLS = ("EUR/USD", "eurusd", "GBP_USD", "USD/JPY", "EUREUR", "gold", "", None)
TIMEFRAMES = (None, "1h", "H1", "60m", "4h", "soon")
PRICES = (np.nan, 1.1, 1e-300, 0.0, -1.0, np.inf, 1e300)
POSITIONS = (np.nan, 0.0, 1.0, -1.0, 1.0000001, -np.inf)
MOMENTS = (
    NO_TIME, NOW_MS, NOW_MS + 1, NOW_MS - 5 * 3_600_000, 0, 31_535_999_999, 31_536_000_000, 4_102_444_800_000, 10**18,
)  # fmt: skip
LENGTHS = (10, 3, 2, 1, 0, 24, 40)
VALUES = (1.0, 1.0, 1.0, 1.0, 1e15, -1e15, 1.1e15, np.nan, np.inf, -np.inf)


def drawn(kinds: tuple[Any, ...], num: int, chance: np.random.Generator, *, usual: float) -> list[Any]:
    """Mostly the first of them."""
    return [kinds[0] if chance.random() < usual else kinds[chance.integers(len(kinds))] for _ in range(num)]


def chunk_of(model: ServedModel, num: int, chance: np.random.Generator, *, usual: float) -> Chunk:
    lengths = drawn(LENGTHS, num, chance, usual=usual)
    columns = []
    for _ in model.card.features:
        values = drawn(VALUES, sum(lengths), chance, usual=1 - (1 - usual) / 30)
        columns += [np.array(lengths, dtype="<i4"), np.array(values, dtype="<f8")]
    buffers = [
        np.array(drawn(PRICES, num, chance, usual=usual)),
        np.array(drawn(POSITIONS, num, chance, usual=usual)),
        np.array(drawn(MOMENTS, num, chance, usual=usual), dtype="<i8"),
        *columns,
    ]
    head = {
        "num": num,
        "texts": {
            "symbol": drawn(SYMBOLS, num, chance, usual=usual),
            "timeframe": drawn(TIMEFRAMES, num, chance, usual=usual),
        },
        "numbers": ["price", "position"],
        "has_as_of": True,
        "features": [[name, "lists"] for name in model.card.features],
    }
    return Chunk(model, head, [memoryview(each.tobytes()) for each in buffers], Bars(model))


def is_right(model: ServedModel, request: PredictRequest | PlatformError) -> bool:
    try:
        if isinstance(request, PlatformError):
            return False
        question = question_of(model, request, received_ms=NOW_MS)
        assert question is not None
        admitted(model, question)
    except PlatformError:
        return False
    return True


@pytest.mark.parametrize("usual", [0.3, 0.8, 0.97])
def test_rows_are_plain_exactly_where_their_bodies_are_right(usual: float, model: ServedModel) -> None:
    chance, found = np.random.default_rng(int(100 * usual)), set()
    for num in (1, 2, 40, 400):
        chunk = chunk_of(model, num, chance, usual=usual)
        plain = chunk.plain(NOW_MS).tolist()
        assert plain == [is_right(model, chunk.request(row)) for row in range(num)]
        found |= set(plain)
    assert found == {True, False}


def test_bodies_are_columns_where_all_of_them_are_right(model: ServedModel) -> None:
    chance, num_whole = np.random.default_rng(1), 0
    for _ in range(150):
        chunk = chunk_of(model, 5, chance, usual=0.97)
        requests = [each for row in range(5) if isinstance(each := chunk.request(row), PredictRequest)]
        plain = [
            each.model_copy(update={"features": {name: list(values) for name, values in (each.columns or {}).items()}})
            for each in requests
        ]
        if not plain:
            continue
        found = columns_of(model, plain, received_ms=NOW_MS)
        assert (found is not None) == all(is_right(model, each) for each in plain)
        if found is None or len(plain) < 5:
            continue
        num_whole += 1
        asked, windows = found
        if (windows.columns["close"] <= 0).any():
            continue  # no level: refused where it is scaled
        assert isinstance(chunk.windows, Windows)
        for name, values in windows.columns.items():
            assert values.tobytes() == chunk.windows.columns[name].tobytes()
        assert asked.symbol.values() == [each.symbol for each in plain]
        run = questions_of(model, asked, windows, received_ms=NOW_MS)
        wanted = questions_of(model, chunk.asked(), chunk.windows, received_ms=NOW_MS)
        for name in ("as_of_ms_N", "price_N", "position_N", "clock_ms_N", "is_historical_N", "has_known_age_N"):
            assert getattr(run, name).tobytes() == getattr(wanted, name).tobytes(), name
    assert num_whole > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"features": None, "inputs": None},
        {"features": {"signal": [1.0] * 10, "close": [1.0] * 10}},
        {"features": {"signal": [1.0] * 10, "close": [1.0] * 10, "rsi": [1.0] * 10}},
        {"features": {"signal": [1.0] * 10, "close": [1.0] * 9, "rsi_14": [1.0] * 10}},
        {"timeframe": "4h"},
    ],
)
def test_one_body_that_is_not_right_has_all_of_them_read_alone(changes: dict[str, Any], model: ServedModel) -> None:
    right = PredictRequest(
        symbol="EUR/USD", timeframe="1h", features={name: [1.0] * 10 for name in model.card.features}
    )  # fmt: skip
    assert columns_of(model, [right, right], received_ms=NOW_MS) is not None
    assert columns_of(model, [right, right.model_copy(update=changes)], received_ms=NOW_MS) is None
