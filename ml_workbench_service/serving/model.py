"""Model loading: `ServedModel`, a published version, verified, as the predict path uses it. Knows no torch.

Legend: N windows, T rows, F features, K outputs.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common_lib.exceptions import BundleDamagedError, PredictionError
from ml_workbench_service.accelerators import PROCESSOR, Provider
from ml_workbench_service.accelerators.processor import processor_features
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, constructed, to_ms
from ml_workbench_service.contracts.market import Costs, Floats, Floats32, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import Making
from ml_workbench_service.contracts.prediction import Precision, Predictor, RawPrediction
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.learning.bundle.manifest import INT8_FILE, MODEL_FILE, RECIPE_FILE, verify
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.bundle.quantization import CalibrationWindows, measure_agreement
from ml_workbench_service.learning.calibration.conformal import NoveltyDetector
from ml_workbench_service.learning.data.scaling import RawRows, RowScaler, load_scaler
from ml_workbench_service.learning.data.windows import Part, from_wire
from ml_workbench_service.learning.decoders.decoder import Decoder, DecodingContext, load_decoder
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.costs import HALF_HOUR_MS, ResolvedCosts, pip_size, round_trip_cost, session_spread_at
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, seasonal_volatility, volatility_of_windows
from ml_workbench_service.market.targets import ewma_volatility, log_returns

MOST_COSTS = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """One version with everything an answer needs; immutable: a record's version and outputs belong together."""

    card: ModelCard
    scaler: RowScaler | RawRows
    derivation: Derivation
    decoder: Decoder
    novelty: NoveltyDetector | None  # None: whatever is asked is answered
    borders_ms: Mapping[Part, int]
    last_available_at_ms: int
    costs: Mapping[str, Costs]
    reference_price: dict[str, float]
    float32: Predictor
    single: Predictor  # int8 where it was accepted, else float32; for one window at a time
    barrier_width: float = 1.0
    profiles: Mapping[str, SeasonalProfile] = field(default_factory=dict)  # empty: volatility without a season
    precision_reason: str = ""  # why float32 answers in int8's place on this processor
    precision_warning: str = ""  # why int8 answers without having been measured for this processor

    @property
    def precision(self) -> Precision:
        """What single predictions come from here."""
        return "fp32" if self.precision_reason else self.card.precision

    @cached_property
    def record_outputs(self) -> tuple[str, ...]:
        """Names of a record's `outputs`."""
        return (*self.card.outputs, *self.decoder.further_outputs)

    @cached_property
    def making(self) -> Making:
        """What the ledger must know to find out what came true."""
        target = self.target if self.decoder.foretells else None
        return Making(target=target, horizon=self.reach, barrier_width=self.barrier_width)

    @cached_property
    def target(self) -> Target | None:
        """The headline target, which begins where the card says."""
        if self.card.target is None:
            return None
        return parse_target(self.card.target).model_copy(update={"delay": self.delay})

    @property
    def reach(self) -> int:
        """Bars from a row to the end of its label."""
        return self.card.horizon + self.delay

    @property
    def delay(self) -> int:
        """Bars from a row to where its label begins."""
        return int(self.card.label_start == "fill")

    @cached_property
    def expires_ms(self) -> int:
        """When the card says that the model is too old."""
        return to_ms(self.card.expires_at)

    @property
    def timeframe_ms(self) -> int:
        """Between the openings of two bars."""
        return TIMEFRAMES_MS[self.card.timeframe]

    def bar_volatility(self, symbol: str, opened_ms: Ints, close: Floats) -> Floats:
        """(N,) ex-ante standard deviation of one of the horizon's bars after each, as in training; NaN where unknown.

        By the card's `volatility_rule`: versions older than the seasonal one keep theirs.
        """
        return ex_ante_volatility(self.profiles.get(symbol), opened_ms, close, horizon=self.card.horizon)

    def volatility_of_windows(self, symbol: str, opened_ms_NW: Ints, close_NW: Floats) -> Floats:
        """(N,) `bar_volatility` at the end of windows of `EWMA_BARS` + 1 bars each, above zero."""
        return volatility_of_windows(self.profiles.get(symbol), opened_ms_NW, close_NW, horizon=self.card.horizon)

    def costs_at(self, symbol: str, spread: float | None = None, *, as_of_ms: int | None = None) -> Costs | None:
        """What trading costs at that moment: with the bar's own spread (in price units) where it has one, else the
        session's where the spread is a default; without a moment the busy hours'.
        """
        costs = self.costs.get(symbol)
        if costs is None:
            return None
        key = (symbol, spread, None if as_of_ms is None else as_of_ms // HALF_HOUR_MS)
        found = self._costs_lately.get(key)
        if found is None:
            found = costs_of_record(costs, symbol, spread=spread, as_of_ms=as_of_ms, calendar=self.card.calendar)
            if len(self._costs_lately) >= MOST_COSTS:
                self._costs_lately.clear()
            self._costs_lately[key] = found
        return found

    @cached_property
    def _costs_lately(self) -> dict[tuple[str, float | None, int | None], Costs]:
        """By symbol, spread and half hour, within which no session begins: an answer asks three times for the same."""
        return {}

    def dead_zone(
        self, symbol: str, price: float | None, spread: float | None = None, *, as_of_ms: int | None = None
    ) -> float:
        """The round-trip cost as a fraction of the price: a smaller forecast is `hold`."""
        costs = self.costs_at(symbol, spread, as_of_ms=as_of_ms)
        assert costs is not None, "a symbol with a scale has costs"
        return round_trip_cost(costs, symbol, price or self.reference_price[symbol])

    def context(
        self,
        symbol: str,
        *,
        price: float | None,
        bar_volatility: float | None,
        position: float = 0.0,
        spread: float | None = None,
        as_of_ms: int | None = None,
    ) -> DecodingContext:
        """What the decoder is told beside the outputs."""
        return DecodingContext(
            label_scale_K=self.scaler.symbols[symbol].label_scale_K,
            bar_volatility=bar_volatility,
            dead_zone=self.dead_zone(symbol, price, spread, as_of_ms=as_of_ms),
            position=position,
            size_weight=self.decoder.sizing.weight(symbol),
        )

    def smoke(self) -> RawPrediction:
        """Answers for a window of zeros (every feature at its centre), whole and shortest, in both precisions.

        Raises:
            PredictionError: an answer is missing or not finite.
        """
        answer = None
        for network in (self.float32, self.single):
            for length in (self.card.lookback, self.card.min_window):
                answer = network.predict(np.zeros((1, length, len(self.card.features)), dtype=np.float32))
                if answer.outputs_NK.shape != (1, len(self.card.outputs)) or not np.isfinite(answer.outputs_NK).all():
                    raise PredictionError(
                        "the model's answer to a window of averages is not a finite number; train it again"
                    )
        assert answer is not None
        return answer


def bar_end_ms(model: ServedModel, as_of_ms: int) -> int:
    """The end of the newest bar at a moment: the moment itself on a whole hour, where bars of any clock may end."""
    return as_of_ms if as_of_ms % HOUR_MS == 0 else as_of_ms // model.timeframe_ms * model.timeframe_ms


def bar_ends_ms(model: ServedModel, as_of_ms_N: Ints) -> Ints:
    """(N,) `bar_end_ms` of each moment."""
    return np.where(as_of_ms_N % HOUR_MS == 0, as_of_ms_N, as_of_ms_N // model.timeframe_ms * model.timeframe_ms)


class LastRow:
    """The predictor of a feature set: the values that were asked about are the answer."""

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """The last row of each window."""
        return RawPrediction(rows_NTF[:, -1], rows_NTF[:, -1])


def costs_of_record(
    costs: Costs, symbol: str, *, spread: float | None, as_of_ms: int | None, calendar: Literal["fx", "fixings"]
) -> Costs:
    """`ServedModel.costs_at`, of a version that need not be loaded."""
    if spread is None and as_of_ms is not None:
        spread = session_spread_at(costs, symbol, as_of_ms, calendar=calendar)
    pips = costs.spread_pips if spread is None else spread / pip_size(symbol)
    return constructed(
        Costs,
        {
            "spread_pips": pips,
            "commission_bp": costs.commission_bp,
            "slippage_bp": costs.slippage_bp,
            "swap_long_pips": costs.swap_long_pips,
            "swap_short_pips": costs.swap_short_pips,
        },
    )


def load_model(
    folder: Path,
    card: ModelCard,
    *,
    providers: Sequence[Provider] = PROCESSOR,
    processor: Sequence[str] | None = None,
) -> ServedModel:
    """Verifies a version's files and opens its networks; int8 runs on the processor, float32 where `providers` say.

    Args:
        card: as the registry gave it, which has verified its signature and so vouches for its digest.
        processor: the features of the processor that answers; this machine's unless given.

    Raises:
        BundleDamagedError: a file is missing or not what was published.
    """
    if verify(folder) != card.digest:
        raise BundleDamagedError(
            f"the bundle {folder.parent.name}/{folder.name} was changed after its card was read; restore it from a "
            "backup or train it again"
        )
    recipe: dict[str, Any] = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    has_network = (folder / MODEL_FILE).exists()
    float32: Predictor = OnnxNetwork(folder / MODEL_FILE, providers=providers) if has_network else LastRow()
    novelty = recipe["uncertainty"].get("novelty")
    model = ServedModel(
        card=card,
        scaler=load_scaler(recipe["scaler"]),
        derivation=Derivation(card.features, recipe.get("expressions", {})),
        decoder=load_decoder(recipe["uncertainty"], card),
        novelty=None if novelty is None else NoveltyDetector.from_json(novelty),
        borders_ms=from_wire(recipe["borders_ms"]),
        last_available_at_ms=recipe["last_known_ms"],
        costs={symbol: ResolvedCosts.model_validate(each) for symbol, each in recipe["costs"].items()},
        reference_price=recipe["reference_price"],
        float32=float32,
        single=float32,
        profiles=profiles_of(card, recipe),
        barrier_width=recipe.get("barrier_width") or (recipe["request"].get("label") or {}).get("k", 1.0),
    )
    if card.precision == "fp32":
        return model
    return _with_int8(model, folder, processor_features() if processor is None else tuple(processor))


def profiles_of(card: ModelCard, recipe: Mapping[str, Any]) -> dict[str, SeasonalProfile]:
    """A version's seasonal profiles by symbol, by its recipe; none where its volatility has no season: before the rule
    had a name there was none."""
    if card.volatility_rule == "ewma":
        return {}
    return {symbol: SeasonalProfile.model_validate(each) for symbol, each in recipe["seasonal_profiles"].items()}


def ex_ante_volatility(profile: SeasonalProfile | None, opened_ms: Ints, close: Floats, *, horizon: int) -> Floats:
    """(N,) standard deviation of one of the horizon's bars after each, as in training; NaN where unknown.

    Args:
        profile: None of a version whose volatility has no season.
    """
    if profile is None:
        return ewma_volatility(close)
    return seasonal_volatility(profile, opened_ms, log_returns(close), horizon=horizon)


def _with_int8(model: ServedModel, folder: Path, processor: tuple[str, ...]) -> ServedModel:
    """int8 for one window at a time, unless it disagrees on this processor; logs what was not settled in training."""
    card, int8 = model.card, OnnxNetwork(folder / INT8_FILE)
    made_on, name = card.quantization.processor, f"{card.id} {card.version}"
    if made_on == processor:
        return replace(model, single=int8)
    if not made_on:
        warning = "the card does not name the processor that int8 was measured on; train it again to be sure of it"
        log.warning("%s answers in int8: %s", name, warning)
        return replace(model, single=int8, precision_warning=warning)
    failures = _disagreements(model, int8, CalibrationWindows.load(folder))
    if not failures:
        log.info("%s answers in int8: measured on %s, it agrees on %s too", name, *map(" ".join, (made_on, processor)))
        return replace(model, single=int8)
    reason = f"int8 was accepted on another processor; here: {'; '.join(failures)}"
    log.warning("%s answers in float32: %s", name, reason)
    return replace(model, precision_reason=reason)


def _disagreements(model: ServedModel, int8: Predictor, kept: CalibrationWindows | None) -> list[str]:
    """What speaks against int8 here, on the calibration windows that the bundle keeps."""
    if kept is None:
        return ["the bundle keeps no calibration windows to measure it again; train it again"]
    symbols = sorted(model.scaler.symbols)
    contexts = [
        model.context(symbols[number], price=price, bar_volatility=None)
        for number, price in zip(kept.symbol_N.tolist(), kept.close_N.tolist(), strict=True)
    ]

    def decide(outputs_NK: Floats) -> np.ndarray:
        decoded = (
            model.decoder.decode(outputs_K.astype(np.float32), context)
            for outputs_K, context in zip(outputs_NK, contexts, strict=True)
        )
        return np.array([f"{each.direction} {each.label}" for each in decoded])

    return measure_agreement(model.float32, int8, kept.rows_NTF, decide=decide).failures
