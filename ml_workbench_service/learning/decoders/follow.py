"""Follow decoding: `FollowDecoder` takes the primary's side where the classifier says that it will pay, else none.

Meta-labelling (López de Prado, "Advances in financial machine learning", 2018, section 3.6): one model gives the side,
another says whether to act on it. The graph runs both; outputs are the classifier's two logits, then the primary's own.
The side is what the primary's decoder states of its outputs at the costs of the moment, as if it had been asked itself.

When it fails: it can only leave bets out. Where the primary has no side there is nothing to follow.

Legend: N windows, C = 2 classes (skip, follow), P outputs of the primary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PRIMARY_SIDE, Direction, Interval
from ml_workbench_service.contracts.runs.columns import Coded, Column, Nested, Numbers
from ml_workbench_service.learning.calibration.class_probabilities import ClassCalibration
from ml_workbench_service.learning.decoders.decoder import (
    Decoded,
    DecodedRun,
    Decoder,
    DecodingContext,
    DecodingRun,
    load_decoder,
)

FOLLOW = 1
"""Place of `follow` among the classes."""
NUM_CLASSES = 2
SIDES: Mapping[Direction, int] = {"sell": -1, "hold": 0, "buy": 1}
DIRECTIONS: tuple[Direction, ...] = ("sell", "hold", "buy")
"""Of the sides -1, 0 and 1."""


def primary_output(name: str) -> str:
    """How a follower calls an output of its primary."""
    return f"primary_{name}"


@dataclass(frozen=True)
class FollowDecoder(Decoder):
    """The calibrated probability that the primary's side pays, and the side where it is the more probable.

    Attributes:
        calibration: of the two classes.
        primary: the primary's own decoder.
        kept: what it was made of: the primary's `card` and `uncertainty`.
    """

    kind: ClassVar[str] = "follow"
    further_outputs: ClassVar[tuple[str, ...]] = (PRIMARY_SIDE,)
    calibration: ClassCalibration
    primary: Decoder
    kept: Mapping[str, Any]

    @classmethod
    def of(cls, calibration: ClassCalibration, kept: Mapping[str, Any]) -> Self:
        """Around what a recipe keeps of the primary."""
        return cls(calibration, load_decoder(kept["uncertainty"], ModelCard.model_validate(kept["card"])), kept)

    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """The primary's side, or none; nothing is stated of the classes where the primary has no side."""
        probabilities_C = self.calibration.probabilities(outputs_K[:NUM_CLASSES])
        said = self.primary.decode(outputs_K[NUM_CLASSES:], replace(context, widening=1.0))
        number, side = int(np.argmax(probabilities_C)), SIDES[said.direction]
        taken = side if number == FOLLOW else 0
        classes = dict(zip(self.calibration.classes, probabilities_C.tolist(), strict=True))
        own = {primary_output(name): value for name, value in said.outputs.items()}
        return Decoded(
            prediction=float(taken),
            outputs={**classes, **own, PRIMARY_SIDE: float(side)},
            direction=DIRECTIONS[taken + 1],
            confidence=float(probabilities_C[number]) if side else None,
            label=self.calibration.classes[number] if side else None,
            strength=float(taken * probabilities_C[FOLLOW]),
        )

    def decode_run(self, outputs_NK: Floats32, run: DecodingRun) -> DecodedRun:
        """`decode` of each window."""
        num = len(outputs_NK)
        probabilities_NC = self.calibration.probabilities(outputs_NK[:, :NUM_CLASSES])
        said = self.primary.decode_run(outputs_NK[:, NUM_CLASSES:], replace(run, widening_N=np.ones(num)))
        number_N, side_N = np.argmax(probabilities_NC, axis=1), _sides(said)
        taken_N = np.where(number_N == FOLLOW, side_N, 0)
        nothing, has_side_N = Numbers(np.full(num, np.nan)), side_N != 0
        classes = dict(zip(self.calibration.classes, map(Numbers, probabilities_NC.T), strict=True))
        outputs: dict[str, Column] = {
            **classes,
            **{primary_output(name): column for name, column in said.outputs.fields.items()},
            PRIMARY_SIDE: Numbers(side_N.astype(np.float64)),
        }
        return DecodedRun(
            prediction=Numbers(taken_N.astype(np.float64)),
            outputs=Nested(None, outputs),
            direction=Coded(DIRECTIONS, taken_N + 1),
            confidence=Numbers(np.where(has_side_N, probabilities_NC[np.arange(num), number_N], np.nan)),
            label=Coded((None, *self.calibration.classes), np.where(has_side_N, number_N + 1, 0)),
            interval=Nested(Interval, dict.fromkeys(Interval.model_fields, nothing), is_there_N=False),
            volatility=nothing,
            strength=Numbers(taken_N * probabilities_NC[:, FOLLOW]),
            wanted=Coded.same(None, num),
            drivers=Coded.same((), num),
            reasons=Coded.same((), num),
            warnings=Coded.same((), num),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {"kind": self.kind, "classes": self.calibration.to_json(), "primary": dict(self.kept)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The inverse of `to_json`."""
        return cls.of(ClassCalibration.from_json(plain["classes"]), plain["primary"])


def stated_sides(decoder: Decoder, outputs_NP: Floats, label_scale_NK: Floats, dead_zone_N: Floats) -> Ints:
    """(N,) the sides that a primary's outputs state at these round-trip costs; 0 where it says `hold`."""
    if not len(outputs_NP):
        return np.zeros(0, dtype=np.int64)
    unit_N = np.ones(len(outputs_NP))
    run = DecodingRun(label_scale_NK, np.full(len(unit_N), np.nan), dead_zone_N, np.zeros(len(unit_N)), unit_N, unit_N)
    return _sides(decoder.decode_run(outputs_NP.astype(np.float32), run))


def _sides(said: DecodedRun) -> Ints:
    sides = np.array([SIDES[each] for each in said.direction.choices], dtype=np.int64)
    return np.asarray(sides[said.direction.codes_N])
