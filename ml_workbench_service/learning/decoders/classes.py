"""Class decoding: `ClassDecoder` states the most probable class, with a calibrated probability.

Legend: N windows, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import Interval
from ml_workbench_service.contracts.runs.columns import Coded, Nested, Numbers
from ml_workbench_service.learning.calibration.class_probabilities import VALUE_OF, ClassCalibration
from ml_workbench_service.learning.decoders.decoder import Decoded, DecodedRun, Decoder, DecodingContext, DecodingRun

LEAD_TO_DEVIATIONS = float(np.sqrt(np.pi / 2))
"""A normal move whose mean is a small share z of its deviation is up more often than down by z x root of 2 / pi."""


@dataclass(frozen=True)
class ClassDecoder(Decoder):
    """Calibrated probabilities, and the class they state; no interval, for a class has none."""

    kind: ClassVar[str] = "classes"
    foretells: ClassVar[bool] = True
    calibration: ClassCalibration

    def decode(self, outputs_K: Floats32, context: DecodingContext) -> Decoded:
        """The most probable class, of equals the first, as `class_metrics.stated` has it.

        The prediction is -1, 0 or 1 for a future move, the class number of a regime, whose direction is `hold`: it
        names the state of the market up to its bar, most of which has already happened when the question is asked, and
        no move that could be traded. `strength` is by how much up is more probable than down, in a forecast's units.
        """
        classes = self.calibration.classes
        probabilities_C = self.calibration.probabilities(outputs_K)
        number = int(np.argmax(probabilities_C))
        value, direction = VALUE_OF.get(classes[number], (float(number), "hold"))
        lead = 0.0  # summed in order by hand: from Python 3.12 on `sum` compensates, which no column does
        for name, probability in zip(classes, probabilities_C.tolist(), strict=True):
            if name in VALUE_OF:
                lead += VALUE_OF[name][0] * probability
        return Decoded(
            prediction=value,
            label=classes[number],
            outputs=dict(zip(classes, probabilities_C.tolist(), strict=True)),
            direction=direction,
            confidence=float(probabilities_C[number]),
            strength=float(np.clip(lead * LEAD_TO_DEVIATIONS, -1.0, 1.0)),
        )

    def decode_run(self, outputs_NK: Floats32, run: DecodingRun) -> DecodedRun:
        """`decode` of each window."""
        classes, num = self.calibration.classes, len(outputs_NK)
        probabilities_NC = self.calibration.probabilities(outputs_NK)
        number_N = np.argmax(probabilities_NC, axis=1)
        stated = [VALUE_OF.get(name, (float(number), "hold")) for number, name in enumerate(classes)]
        lead_N = np.zeros(num)
        for name, probability_N in zip(classes, probabilities_NC.T, strict=True):
            if name in VALUE_OF:
                lead_N += VALUE_OF[name][0] * probability_N
        nothing = Numbers(np.full(num, np.nan))
        return DecodedRun(
            prediction=Numbers(np.array([value for value, _ in stated])[number_N]),
            outputs=Nested(None, dict(zip(classes, map(Numbers, probabilities_NC.T), strict=True))),
            direction=Coded(tuple([direction for _, direction in stated]), number_N),
            confidence=Numbers(probabilities_NC[np.arange(num), number_N]),
            label=Coded(classes, number_N),
            interval=Nested(Interval, dict.fromkeys(Interval.model_fields, nothing), is_there_N=False),
            volatility=nothing,
            strength=Numbers(np.clip(lead_N * LEAD_TO_DEVIATIONS, -1.0, 1.0)),
            wanted=Coded.same(None, len(lead_N)),
            drivers=Coded.same((), num),
            reasons=Coded.same((), num),
            warnings=Coded.same((), num),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {"kind": self.kind, **self.calibration.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], card: ModelCard) -> Self:
        """The inverse of `to_json`."""
        return cls(ClassCalibration.from_json(plain))
