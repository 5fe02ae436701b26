"""Rows of a chunk: which of them are right as columns, and the body of `/predict` that any other is.

A row is taken as columns where every rule of that body holds, by the rules' own figures; any other is read as its body,
whose words then say what is wrong. So errors have one author.

Legend: N rows of a chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.contracts.batches import NO_TIME
from ml_workbench_service.contracts.contract import normal_symbol, normal_timeframe, to_ms
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.market.targets import EWMA_BARS
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.runs.from_columns import AskedRows, Windows

LARGEST = 1e15
MOST_SYMBOLS = 1_000
FIRST_MS, END_MS = (to_ms(datetime(year, 1, 1, tzinfo=UTC)) for year in (1971, 2100))
"""The market's calendar, as `contracts.contract.MarketDatetime` has it."""


class Chunk:
    """The rows of one chunk.

    Args:
        head: what the columns are, as `runtime/batch_stream.py` says.
        buffers: their values.
        bars: of the request, where its rows are bars.
    """

    def __init__(
        self, model: ServedModel, head: Mapping[str, Any], buffers: Sequence[memoryview], bars: "Bars"
    ) -> None:
        self._model, self.num = model, int(head["num"])
        waiting = iter(buffers)
        none = [None] * self.num
        self._symbols: Sequence[str | None] = head["texts"].get("symbol", none)
        self._timeframes: Sequence[str | None] = head["texts"].get("timeframe", none)
        numbers = {name: np.frombuffer(next(waiting), "<f8") for name in head["numbers"]}
        nothing_N = np.full(self.num, np.nan)
        self._price_N, self._position_N = (numbers.get(name, nothing_N) for name in ("price", "position"))
        self._as_of_ms_N = np.full(self.num, NO_TIME)
        if head["has_as_of"]:
            self._as_of_ms_N = np.frombuffer(next(waiting), "<i8")
        known = model.card.symbols
        unsaid = known[0] if len(known) == 1 else None
        self.symbol = Coded.of(self._symbols).mapped(lambda each: _normal(each or unsaid))
        self.windows = self._windows(head["features"], waiting, bars)

    def _windows(
        self, features: Sequence[tuple[str, str]], waiting: Any, bars: "Bars"
    ) -> Windows | dict[str, Windows] | None:
        """Of one length for all features; else each feature's; None: there are no features."""
        kinds = {kind for _, kind in features}
        if len(kinds) > 1:
            raise DataValidationError.at("body", "features come as lists, a window a row, or as numbers, a bar a row")
        if not kinds:
            return None
        if kinds == {"values"}:
            return bars.windows(self.symbol, {name: np.frombuffer(next(waiting), "<f8") for name, _ in features})
        lengths, values = {}, {}
        for name, _ in features:
            lengths[name] = np.frombuffer(next(waiting), "<i4")
            values[name] = np.frombuffer(next(waiting), "<f8")
        first_N, *others = lengths.values()
        if all(np.array_equal(each, first_N) for each in others):
            return _lists(values, first_N)
        return {name: _lists({name: values[name]}, each) for name, each in lengths.items()}

    def plain(self, received_ms: int) -> Bools:
        """(N,) which rows are right as columns."""
        card, windows = self._model.card, self.windows
        if not isinstance(windows, Windows) or set(windows.columns) != set(card.features) or self._is_derived:
            return np.zeros(self.num, dtype=np.bool_)
        is_known = np.array([each is not None for each in self.symbol.choices])[self.symbol.codes_N]
        timeframes = Coded.of(self._timeframes)
        fits = [each is None or _fits(each, card.timeframe) for each in timeframes.choices]
        price_N, position_N, as_of_ms_N = self._price_N, self._position_N, self._as_of_ms_N
        is_plain_N: Bools = (
            is_known
            & np.array(fits)[timeframes.codes_N]
            & (np.isnan(price_N) | ((price_N > 0) & (price_N < np.inf)))
            & (np.isnan(position_N) | (np.abs(position_N) <= 1))
            & (
                (as_of_ms_N == NO_TIME)
                | ((as_of_ms_N >= FIRST_MS) & (as_of_ms_N < END_MS) & (as_of_ms_N <= received_ms))
            )
            & (windows.lengths >= card.min_window)
            & _sound(windows)
        )
        return is_plain_N

    @property
    def _is_derived(self) -> bool:
        """Whether the columns are those that the model's expressions read."""
        derivation, windows = self._model.derivation, self.windows
        assert isinstance(windows, Windows)
        return bool(derivation.expressions) and set(windows.columns) == set(derivation.base_columns)

    def asked(self) -> AskedRows:
        """What the rows say beside their features."""
        position_N = np.where(np.isnan(self._position_N), 0.0, self._position_N)
        return AskedRows(self.symbol, self._as_of_ms_N, self._price_N, position_N)

    def request(self, row: int) -> PredictRequest | PlatformError:
        """The body of `/predict` that a row is, or what is wrong with it."""
        request = self._without_features(row)
        if isinstance(request, PlatformError) or self.windows is None:
            return request
        parts = [self.windows] if isinstance(self.windows, Windows) else list(self.windows.values())
        columns = {name: values for each in parts for name, values in each.of(row).items()}
        for name, values in columns.items():
            if not len(values) or not _is_sound(values):
                return DataValidationError.at(
                    f"row.{name}",
                    f"{name} has no values, or some that are missing, not finite, or beyond {LARGEST:.0e}",
                )
        return request.model_copy(update={"features": columns})

    def _without_features(self, row: int) -> PredictRequest | PlatformError:
        card = self._model.card
        body: dict[str, Any] = {"timeframe": card.timeframe, "version": card.version}
        if len(card.symbols) == 1:
            body["symbol"] = card.symbols[0]
        moment_ms = int(self._as_of_ms_N[row])
        said: dict[str, Any] = {
            "symbol": self._symbols[row],
            "timeframe": self._timeframes[row],
            "price": None if np.isnan(self._price_N[row]) else float(self._price_N[row]),
            "position": None if np.isnan(self._position_N[row]) else float(self._position_N[row]),
        }
        if moment_ms != NO_TIME:
            try:
                said["as_of"] = datetime.fromtimestamp(moment_ms / 1000, tz=UTC)
            except (OverflowError, ValueError, OSError):
                return DataValidationError.at(
                    "row.as_of", "a time must lie within the years 1971 to 2099; check its unit"
                )
        body |= {name: value for name, value in said.items() if value is not None}
        if "symbol" not in body:
            return DataValidationError.at(
                "symbol", f"{card.id} knows {', '.join(card.symbols)}; say which with `symbol`"
            )
        try:
            return PredictRequest.model_validate(body)
        except ValidationError as error:
            return of_pydantic(error, PredictRequest, prefix="row")


class Bars:
    """The newest bars of each symbol, over the chunks of a request."""

    def __init__(self, model: ServedModel) -> None:
        reach = model.card.lookback + model.derivation.history
        self._reach = max(reach, EWMA_BARS + 1) if "close" in readable(model) else reach
        self._kept: dict[str, dict[str, Floats]] = {}

    def windows(self, symbol: Coded, columns: Mapping[str, Floats]) -> Windows:
        """The window that ends with each row's bar; none where its symbol is none.

        Raises:
            DataValidationError: too many symbols.
        """
        begins_N, ends_N = np.zeros((2, len(symbol.codes_N)), dtype=np.int64)
        wholes: dict[str, list[Floats]] = {name: [] for name in columns}
        num_before = 0
        for name in dict.fromkeys(symbol.choices):
            rows = np.flatnonzero(_is_one_of(symbol, name))
            if name is None or not len(rows):
                continue
            if name not in self._kept and len(self._kept) >= MOST_SYMBOLS:
                raise DataValidationError.at("body.symbol", f"a request has at most {MOST_SYMBOLS} symbols")
            kept = self._kept.get(name, {})
            whole = {
                each: np.concatenate([kept.get(each, values[:0]), values[rows]]) for each, values in columns.items()
            }
            num = len(next(iter(whole.values())))
            places = np.arange(num - len(rows), num) + 1
            ends_N[rows] = num_before + places
            begins_N[rows] = num_before + np.maximum(places - self._reach, 0)
            num_before += num
            self._kept[name] = {each: values[-self._reach :].copy() for each, values in whole.items()}
            for each, values in whole.items():
                wholes[each].append(values)
        joined = {name: np.concatenate(each) if each else np.zeros(0) for name, each in wholes.items()}
        return Windows(joined, begins_N, ends_N)


def readable(model: ServedModel) -> tuple[str, ...]:
    """Features, and the columns that they can be derived from."""
    return tuple(dict.fromkeys([*model.card.features, *model.derivation.base_columns]))


def _is_one_of(symbol: Coded, name: str | None) -> Bools:
    """(N,) which rows have this symbol, by whatever spelling."""
    return np.array([each == name for each in symbol.choices])[symbol.codes_N]


def _lists(columns: Mapping[str, Floats], lengths_N: Ints) -> Windows:
    ends_N = np.cumsum(lengths_N, dtype=np.int64)
    return Windows(columns, ends_N - lengths_N, ends_N)


def _normal(text: str | None) -> str | None:
    return _read(normal_symbol, text)


def _fits(text: str, timeframe: str) -> bool:
    return _read(normal_timeframe, text) == timeframe


def _read(read: Callable[[Any], str], text: str | None) -> str | None:
    try:
        return read(text)
    except ValueError:
        return None


def _sound(windows: Windows) -> Bools:
    """(N,) whose values are all finite and within bounds."""
    is_sound_N = np.ones(len(windows.begins), dtype=np.bool_)
    for values in windows.columns.values():
        if _is_sound(values):
            continue
        num_bad = np.concatenate([[0], np.cumsum(~(np.abs(values) <= LARGEST))])
        is_sound_N &= num_bad[windows.ends] == num_bad[windows.begins]
    return is_sound_N


def _is_sound(values: Floats) -> bool:
    return bool((np.abs(values) <= LARGEST).all())  # NaN is not
