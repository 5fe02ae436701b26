"""Greedy policy: `ActionDecoder` states the action that a policy values most, flat among equals.

It has nothing to calibrate and no confidence: a Q value is a sum of discounted rewards, and the probability with which
a stochastic policy draws an action says how it explored, not how likely any event is.

Legend: N windows, K = 3 outputs: short, flat, long.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import Direction
from ml_workbench_service.learning.decoders.decoder import Decoded, Decoder, DecodingContext

LABELS = ("short", "flat", "long")
DIRECTIONS: tuple[Direction, ...] = ("sell", "hold", "buy")
FLAT = 1


@dataclass(frozen=True)
class ActionDecoder(Decoder):
    """Says the greedy action of outputs that are named after the three actions, in this order."""

    kind: ClassVar[str] = "action"
    holds_positions: ClassVar[bool] = True
    names: tuple[str, ...]

    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """The next position, -1, 0 or 1; the position held has been read by the network already."""
        action = int(greedy_actions(outputs_K[None])[0])
        return Decoded(
            prediction=float(action - FLAT),
            outputs=dict(zip(self.names, outputs_K.astype(np.float64).tolist(), strict=True)),
            direction=DIRECTIONS[action],
            label=LABELS[action],
            strength=float(action - FLAT),
        )

    def next_positions(self, outputs_NK: Floats32) -> tuple[int, ...]:
        """`greedy_actions` of each row, as a position; in plain numbers, since an answer asks for three rows."""
        return tuple(
            0 if flat >= short and flat >= long else -1 if short >= long else 1
            for short, flat, long in outputs_NK.tolist()
        )

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The card has the names."""
        return cls(names=card.outputs)


def greedy_actions(outputs_NK: np.ndarray) -> Ints:
    """The best action (N,) in 0, 1, 2 of each row; flat where it is among the best."""
    best = outputs_NK.argmax(axis=1)
    return np.where(outputs_NK[:, FLAT] >= outputs_NK.max(axis=1), FLAT, best).astype(np.int64)
