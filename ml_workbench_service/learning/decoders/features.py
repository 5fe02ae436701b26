"""Feature decoding: the columns of a feature set are the answer.

Legend: K columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.decoders.decoder import Decoded, Decoder, DecodingContext


@dataclass(frozen=True)
class FeaturesDecoder(Decoder):
    """Every column under its name; the first, which the search found the most telling, is the prediction."""

    kind: ClassVar[str] = "features"
    abstains_when_novel: ClassVar[bool] = False
    names: tuple[str, ...]

    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """The values as they are; they lean neither to buying nor to selling."""
        values = [float(value) for value in outputs_K]
        return Decoded(prediction=values[0], outputs=dict(zip(self.names, values, strict=True)), strength=0.0)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The inverse of `to_json`."""
        return cls(card.outputs)
