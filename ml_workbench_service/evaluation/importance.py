"""Permutation importance in blocks: what a version's answers lose where one column comes from another time.

Each window gets one column, over its whole lookback, from another window of the same symbol; all other columns stay.
Windows move in blocks as long as a window and its label reach, so that what lies within a block keeps its dependence,
and the blocks' order is drawn anew in each repetition (Breiman, Machine Learning 45, 2001, in blocks). The added loss
of a row is a mean over the repetitions; its error over rows is HAC, as the losses of neighbouring windows are alike.

When it fails: of two columns that say the same, each can be done without, and both look unimportant; and a window with
a column of another time may be one that the market never shows, of which the network has learnt nothing.

The bundle's own float32 network and decoder answer, as in serving, whatever the family: nothing is trained.

Legend: N judged windows, R scaled rows of one symbol, T rows of a window, F features, K outputs, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common_lib.exceptions import ConflictError, DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.importance import ColumnImportance, ImportancePart
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable, Floats, Floats32, Ints
from ml_workbench_service.contracts.runs.columns import Numbers
from ml_workbench_service.evaluation.moment_means import MomentMean, holm
from ml_workbench_service.integrations.table_files import open_stored, read_columns
from ml_workbench_service.learning.calibration.class_probabilities import class_numbers
from ml_workbench_service.learning.decoders.decoder import DecodingRun
from ml_workbench_service.serving.history import fetch_range, read_history
from ml_workbench_service.serving.model import ServedModel

WINDOWS_AT_ONCE = 2_048
FEWEST_BLOCKS = 10
"""Of a symbol; fewer orders than ten blocks have say little."""
AGREES = 1e-5
"""Share of the forecasts' root mean square: more than this the answers of today and of training never differ."""


@dataclass(frozen=True)
class JudgedWindows:
    """The windows of one part that the version answered and whose outcome is known, by symbol and time.

    Attributes:
        rows: scaled rows of each symbol, (R, F).
        symbol_N: each window's symbol, by its place in `rows`.
        end_N: the row of its symbol with which it ends.
        as_of_N: when that row was known.
    """

    model: ServedModel
    symbols: tuple[str, ...]
    rows: tuple[Floats32, ...]
    symbol_N: Ints
    end_N: Ints
    as_of_N: Ints
    realised_N: Floats

    def losses(self, column: int | None = None, source_N: Ints | None = None) -> Floats:
        """(N,) of each window's answer; with one column from the windows of `source_N`."""
        found = [
            self._losses(numbers_n, column, None if source_N is None else source_N[numbers_n])
            for numbers_n in np.array_split(np.arange(len(self.end_N)), -(-len(self.end_N) // WINDOWS_AT_ONCE))
        ]
        return np.concatenate(found)

    @property
    def block(self) -> int:
        """Windows that move together."""
        return self.model.card.lookback + self.model.reach

    def shuffled(self, chance: np.random.Generator) -> Ints:
        """(N,) for each window another of its symbol: blocks in a new order, cut from a place that is drawn."""
        found = np.arange(len(self.end_N))
        for place in range(len(self.symbols)):
            own = np.flatnonzero(self.symbol_N == place)
            turned = np.roll(own, -int(chance.integers(len(own))))
            blocks = np.array_split(turned, len(own) // self.block)
            found[own] = np.concatenate([blocks[number] for number in chance.permutation(len(blocks))])
        return found

    def answers(self) -> Floats:
        """(N,) the headline number of each window as it is."""
        return np.concatenate(
            [
                self._decoded(self._windows(numbers_n), numbers_n)[0]
                for numbers_n in np.array_split(np.arange(len(self.end_N)), -(-len(self.end_N) // WINDOWS_AT_ONCE))
            ]
        )

    def _losses(self, numbers_n: Ints, column: int | None, source_n: Ints | None) -> Floats:
        rows_nTF = self._windows(numbers_n)
        if column is not None and source_n is not None:
            rows_nTF[:, :, column] = self._windows(source_n)[:, :, column]
        prediction_n, probabilities_nC = self._decoded(rows_nTF, numbers_n)
        realised_n = self.realised_N[numbers_n]
        if probabilities_nC is None:
            return np.asarray((prediction_n - realised_n) ** 2)
        came_nC = realised_n[:, None] == class_numbers(self.model.card.classes)
        return np.asarray(((probabilities_nC - came_nC) ** 2).sum(axis=1))

    def _windows(self, numbers_n: Ints) -> Floats32:
        lookback = self.model.card.lookback
        steps_T = np.arange(1 - lookback, 1)
        found = np.empty((len(numbers_n), lookback, self.rows[0].shape[1]), dtype=self.rows[0].dtype)
        for place, rows_RF in enumerate(self.rows):
            own = np.flatnonzero(self.symbol_N[numbers_n] == place)
            found[own] = rows_RF[self.end_N[numbers_n[own]][:, None] + steps_T]
        return found

    def _decoded(self, rows_nTF: Floats32, numbers_n: Ints) -> tuple[Floats, Floats | None]:
        """The headline number, and of classifiers each class's probability."""
        model, num = self.model, len(numbers_n)
        scales = np.array([model.scaler.symbols[symbol].label_scale_K for symbol in self.symbols])
        decoded = model.decoder.decode_run(
            model.float32.predict(rows_nTF).outputs_NK,
            DecodingRun(
                label_scale_NK=scales[self.symbol_N[numbers_n]],
                bar_volatility_N=np.full(num, np.nan),
                dead_zone_N=np.zeros(num),
                position_N=np.zeros(num),
                widening_N=np.ones(num),
                size_weight_N=np.ones(num),
            ),
        )
        if not model.card.classes:
            return decoded.prediction.values_N, None
        columns = [decoded.outputs.fields[name] for name in model.card.classes]
        stated = [each.values_N for each in columns if isinstance(each, Numbers)]
        assert len(stated) == len(columns), "probabilities are numbers"
        return decoded.prediction.values_N, np.column_stack(stated)


def judged_windows(model: ServedModel, store: FeatureStore, path: Path, part: ImportancePart) -> JudgedWindows:
    """The windows of a part, fetched anew, as the version's kept rows name them.

    Args:
        path: the version's evaluation.parquet.

    Raises:
        DataValidationError: the version forecasts nothing, or the part is too short.
        ConflictError: the store's bars are no longer those that the version was judged on.
        SeriesNotFoundError: it kept no rows of the part.
    """
    if not model.decoder.foretells:
        raise DataValidationError.at("path.model_id", "only forecasts have losses; ask of a version that forecasts")
    kept = read_columns(open_stored(path, "version", part), ["as_of", "symbol", "realised", "prediction", "status"])
    is_judged = (kept["status"] == "ok") & np.isfinite(kept["realised"]) & np.isfinite(kept["prediction"])
    kept = {name: values[is_judged] for name, values in kept.items()}
    as_of, symbol = kept["as_of"].astype(np.int64), kept["symbol"].astype(str)
    symbols = tuple(sorted(set(symbol.tolist())))
    if not symbols:
        raise DataValidationError.at("body.part", f"no row of the {part} part has an outcome; choose the other part")
    tables = {
        each.symbol: each
        for each in fetch_range(
            model, store, symbols=symbols, start_ms=int(as_of.min()) - 2 * TIMEFRAMES_MS[model.card.timeframe],
            end_ms=int(as_of.max()),
        )
    }  # fmt: skip
    order = np.lexsort((as_of, symbol))
    rows, ends = [], []
    for name in symbols:
        rows_RF, ends_N = _scaled(model, tables.get(name), as_of[order][symbol[order] == name])
        rows.append(rows_RF)
        ends.append(ends_N)
    windows = JudgedWindows(
        model=model,
        symbols=symbols,
        rows=tuple(rows),
        symbol_N=np.searchsorted(symbols, symbol[order]).astype(np.int64),
        end_N=np.concatenate(ends),
        as_of_N=as_of[order],
        realised_N=kept["realised"][order],
    )
    _check(windows, kept["prediction"][order])
    return windows


def permutation_importance(
    windows: JudgedWindows, *, num_repeats: int, seed: int, progress: Callable[[int, int], None]
) -> tuple[tuple[ColumnImportance, ...], float]:
    """Each column, the one that adds most first, and the mean loss as it is.

    Args:
        progress: hears after every repetition how many are done, of how many.
    """
    plain_N = windows.losses()
    chance = np.random.default_rng(seed)
    sources = [windows.shuffled(chance) for _ in range(num_repeats)]
    features = windows.model.card.features
    moments, place_N = np.unique(windows.as_of_N, return_inverse=True)
    every_N = np.ones(len(plain_N), dtype=bool)
    means = []
    for number in range(len(features)):
        added_N = np.zeros(len(plain_N))
        for repeat, source_N in enumerate(sources):
            added_N += (windows.losses(number, source_N) - plain_N) / num_repeats
            progress(number * num_repeats + repeat + 1, len(features) * num_repeats)
        means.append(MomentMean.of(added_N, every_N, place_N, len(moments)))
    estimates = [each.estimate(horizon=windows.block) for each in means if each is not None]
    loss = float(plain_N.mean())
    found = [
        ColumnImportance(
            name=name,
            loss_added=estimate,
            share_of_loss=estimate.value / loss if loss > 0 and estimate.value is not None else None,
            adjusted_p_value=p_value,
        )
        for name, estimate, p_value in zip(features, estimates, holm([each.p_value for each in estimates]), strict=True)
    ]
    return tuple(sorted(found, key=lambda each: -(each.loss_added.value or 0.0))), loss


def _scaled(model: ServedModel, table: FeatureTable | None, as_of: Ints) -> tuple[Floats32, Ints]:
    """One symbol's rows as the network reads them, and those with which the windows end."""
    if table is None:
        raise _changed("a symbol has no bars there any more")
    history = read_history(model, table)
    ends = np.searchsorted(table.available_at_ms, as_of)
    if (ends >= len(table)).any() or (table.available_at_ms[np.minimum(ends, len(table) - 1)] != as_of).any():
        raise _changed(f"bars of {table.symbol} are missing")
    if (history.streak_N[ends] < model.card.lookback).any():
        raise _changed(f"features of {table.symbol} are missing")
    num_blocks = len(ends) // (model.card.lookback + model.reach)
    if num_blocks < FEWEST_BLOCKS:
        raise DataValidationError.at(
            "body.part",
            f"{table.symbol} has {len(ends)} windows there, {num_blocks} blocks of lookback and horizon; an order of "
            f"under {FEWEST_BLOCKS} blocks says nothing, so train with a larger `validation_split`",
        )
    is_read = np.zeros(len(table), dtype=bool)
    for step in range(model.card.lookback):
        is_read[ends - step] = True
    x_RF = history.x_NF[is_read]
    return model.scaler.rows(table.symbol, x_RF), (np.cumsum(is_read) - 1)[ends]


def _check(windows: JudgedWindows, stated_N: Floats) -> None:
    """Raises ConflictError where the answers are not those that were kept; int8 ones differ by their precision."""
    if windows.model.card.precision != "fp32":
        return
    size = float(np.sqrt(np.mean(stated_N**2))) or 1.0
    if np.abs(windows.answers() - stated_N).max() > AGREES * size:
        raise _changed("the version answers otherwise on them")


def _changed(why: str) -> ConflictError:
    return ConflictError(
        f"the store's bars are no longer those that the version was judged on: {why}; train it again on today's"
    )
