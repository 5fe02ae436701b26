"""`Decoder`: turns a network's outputs into a record's fields, with what the calibration part taught it. Free of torch.

One class for each kind of answer (a forecast, classes, an anomaly score, an action), in `learning/decoders/`. A decoder
is fitted in training, kept in `recipe.json`, and asked by every path that predicts, the scoring of the test part too.

A run of many windows is decoded as columns (`decode_run`), the same to the bit as each alone: element by element, with
sums in a fixed order.

Legend: N windows, K outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import AbstainReason, Direction, Driver, Interval
from ml_workbench_service.contracts.runs.columns import Coded, Nested, Numbers
from ml_workbench_service.contracts.sizing import PositionWanted
from ml_workbench_service.market.sizing import PLAIN, Sizing


@dataclass(frozen=True)
class DecodingContext:
    """What is known beside the outputs.

    Attributes:
        label_scale_K: the units of the targets for this symbol.
        bar_volatility: ex-ante standard deviation of one bar's log return; None where unknown.
        dead_zone: the round-trip cost as a fraction of the price: a smaller forecast is `hold`.
        position: what is held already, -1 to 1.
        widening: what the interval's half-widths are multiplied by; nothing else of an answer knows it.
        size_weight: of the symbol, in the version's portfolio.
    """

    label_scale_K: Floats
    bar_volatility: float | None
    dead_zone: float
    position: float = 0.0
    widening: float = 1.0
    size_weight: float = 1.0


class IntervalScale(NamedTuple):
    """What an interval is stated in units of.

    Attributes:
        value: above zero, in the unit of the headline target.
        is_volatility: whether it follows the market; otherwise it is the same for every bar.
    """

    value: float
    is_volatility: bool


@dataclass(frozen=True)
class Decoded:
    """What a record says of the outputs.

    Attributes:
        prediction: the headline number: a forecast, the number of a class, a score, a position.
        outputs: every named output, in the unit that users read.
        direction: buy, sell or hold.
        confidence: calibrated probability of what is stated; None where the decoder has none.
        label: the name of the class or action stated; None for a number.
        interval: where the realised value falls.
        volatility: ex-ante standard deviation of the target over its horizon; None where there is none.
        strength: how strongly it speaks for buying (to 1) or selling (to -1), 0 for neither, as an agent reads it;
            None: the forecast in units of its volatility.
        wanted: the position by the version's declared rule; None where the direction says it.
        drivers: features that drove a score, most first.
        reasons: why to abstain.
        warnings: what to know.
    """

    prediction: float
    outputs: dict[str, float]
    direction: Direction = "hold"
    confidence: float | None = None
    label: str | None = None
    interval: Interval | None = None
    volatility: float | None = None
    strength: float | None = None
    wanted: PositionWanted | None = None
    drivers: tuple[Driver, ...] = ()
    reasons: tuple[AbstainReason, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecodingRun:
    """What is known beside the outputs of N windows: `DecodingContext` as columns, NaN for no volatility."""

    label_scale_NK: Floats
    bar_volatility_N: Floats
    dead_zone_N: Floats
    position_N: Floats
    widening_N: Floats
    size_weight_N: Floats

    def context(self, number: int) -> DecodingContext:
        """One window's."""
        volatility = float(self.bar_volatility_N[number])
        return DecodingContext(
            label_scale_K=self.label_scale_NK[number],
            bar_volatility=volatility if isfinite(volatility) else None,
            dead_zone=float(self.dead_zone_N[number]),
            position=float(self.position_N[number]),
            widening=float(self.widening_N[number]),
            size_weight=float(self.size_weight_N[number]),
        )


@dataclass(frozen=True)
class DecodedRun:
    """What records say of the outputs of N windows: the fields of `Decoded` as columns."""

    prediction: Numbers
    outputs: Nested
    direction: Coded
    confidence: Numbers
    label: Coded
    interval: Nested
    volatility: Numbers
    strength: Numbers
    wanted: Nested | Coded
    drivers: Coded
    reasons: Coded
    warnings: Coded

    @classmethod
    def of(cls, decoded: Sequence[Decoded]) -> "DecodedRun":
        """Of windows that were decoded one by one."""
        names, intervals = tuple(decoded[0].outputs), [each.interval for each in decoded]
        ends = {
            name: Numbers(np.array([np.nan if each is None else getattr(each, name) for each in intervals]))
            for name in Interval.model_fields
        }
        return cls(
            prediction=_numbers([each.prediction for each in decoded]),
            outputs=Nested(None, {name: _numbers([each.outputs[name] for each in decoded]) for name in names}),
            direction=Coded.of([each.direction for each in decoded]),
            confidence=_numbers([each.confidence for each in decoded]),
            label=Coded.of([each.label for each in decoded]),
            interval=Nested(Interval, ends, np.array([each is not None for each in intervals])),
            volatility=_numbers([each.volatility for each in decoded]),
            strength=_numbers([each.strength for each in decoded]),
            wanted=Coded(tuple([each.wanted for each in decoded]), np.arange(len(decoded))),
            drivers=Coded(tuple([each.drivers for each in decoded]), np.arange(len(decoded))),
            reasons=Coded.of([each.reasons for each in decoded]),
            warnings=Coded.of([each.warnings for each in decoded]),
        )


def _numbers(values: Sequence[float | None]) -> Numbers:
    return Numbers(np.array(values, dtype=np.float64))  # None becomes NaN


class Decoder(ABC):
    """One kind of answer; registers by being defined.

    Attributes:
        kind: its name in `recipe.json`.
        abstains_when_novel: whether an input far from the training part is no ground for an answer.
        holds_positions: whether the prediction is a position, which the next answer is told of.
        foretells: whether the prediction is a value of the headline target, which may come true.
        further_outputs: names among a record's `outputs` that are no outputs of the graph.
        sizing: by which rule what is said becomes a position; the direction's side, unless a version declares another.
    """

    kind: ClassVar[str]
    abstains_when_novel: ClassVar[bool] = True
    holds_positions: ClassVar[bool] = False
    foretells: ClassVar[bool] = False
    further_outputs: ClassVar[tuple[str, ...]] = ()
    sizing: Sizing = PLAIN
    known: ClassVar[dict[str, type["Decoder"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.kind in Decoder.known:
            raise TypeError(f"two decoders are called {cls.kind}")
        Decoder.known[cls.kind] = cls

    @abstractmethod
    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """What one window's outputs say."""

    def decode_run(self, outputs_NK: Floats32, run: DecodingRun) -> DecodedRun:
        """What each window's outputs say, at least one; a kind that is asked much does it without a loop."""
        return DecodedRun.of([self.decode(outputs_K, run.context(row)) for row, outputs_K in enumerate(outputs_NK)])

    def next_positions(self, outputs_NK: Floats32) -> tuple[int, ...]:
        """Which position (-1, 0 or 1) follows from each row of outputs; none where the decoder holds no positions."""
        return ()

    def interval_scale(self, context: DecodingContext) -> IntervalScale | None:
        """What the interval is stated in units of here; None where the decoder states no interval."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`: its kind alone, unless it has learnt something."""
        return {"kind": self.kind}

    @classmethod
    @abstractmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The inverse of `to_json`, for the version that this card describes."""


def load_decoder(plain: Mapping[str, Any], card: ModelCard) -> Decoder:
    """The decoder that a recipe describes; recipes older than the name of the kind are forecasts'."""
    return Decoder.known[plain.get("kind", "forecast")].from_json(plain, card)
