"""Anomaly decoding: `AnomalyDecoder` says how strange a window is, and whether that is an alarm.

A novel input is no ground to abstain here: novelty is what is asked for.

Legend: K outputs, the window's error and then each feature's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.calibration.anomaly_score import AnomalyScale
from ml_workbench_service.learning.decoders.decoder import Decoded, Decoder, DecodingContext

LABELS = ("usual", "anomaly")


@dataclass(frozen=True)
class AnomalyDecoder(Decoder):
    """Says the score in [0, 1] as the prediction, and `anomaly` where it exceeds the threshold; it never trades."""

    kind: ClassVar[str] = "anomaly"
    abstains_when_novel: ClassVar[bool] = False
    names: tuple[str, ...]
    scale: AnomalyScale

    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """The score, its label, what drove it, and every error as the network gave it."""
        values = outputs_K.astype(np.float64)
        score = self.scale.score(float(values[0]))
        return Decoded(
            prediction=score,
            label=LABELS[score > self.scale.threshold],
            outputs=dict(zip(self.names, values.tolist(), strict=True)),
            strength=0.0,
            drivers=self.scale.drivers(values[1:]),
            warnings=("threshold_extrapolated",) if self.scale.is_extrapolated else (),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {"kind": self.kind, **self.scale.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The card has the names."""
        return cls(names=card.outputs, scale=AnomalyScale.from_json(plain))
