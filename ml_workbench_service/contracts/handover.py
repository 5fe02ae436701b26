"""The hand-over: what a predict worker leaves for the control process, which alone writes STATE_DIR.

    HandedAnswer     a live version's answer, for the ledger
    HandedInterval   the interval that it stated and the price that it learnt, for the live intervals
    HandedDrops      questions that taught the intervals nothing, by reason, counted together

They lie in the stream `ml_workbench:handover` in the order in which they were answered, several an entry.
"""

from base64 import b64decode
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import KEY_PREFIX
from ml_workbench_service.contracts.training import Target

HANDOVER_STREAM = KEY_PREFIX + "handover"


class HandedMaking(Contract):
    """`Making` on its way."""

    target: Target | None
    horizon: int
    barrier_width: Finite


class HandedAnswer(Contract):
    """An answer with what the ledger keeps beside it.

    Attributes:
        inputs: the newest row as the network read it, float32 in base64.
    """

    kind: Literal["answer"]
    is_sampled: bool
    bar_volatility: Finite | None
    reference_price: Finite | None
    inputs: str | None
    making: HandedMaking
    record: PredictionRecord

    def answered(self) -> Answered:
        """As serving leaves it in a single process."""
        inputs_F = None if self.inputs is None else np.frombuffer(b64decode(self.inputs), dtype="<f4")
        return Answered(self.record, inputs_F, self.bar_volatility, self.reference_price)

    def made_by(self) -> Making:
        """The version's."""
        return Making(self.making.target, self.making.horizon, self.making.barrier_width)


class HandedInterval(Contract):
    """A live question with the price of a new bar, and the interval that the answer stated.

    Attributes:
        factor: the bar's season.
        horizon: bars to the end of the label, its delay included.
        lower, upper, level: None where the answer states no interval.
        scale, lean: what it was widened by (`learning/calibration/adaptive_intervals.py`).
    """

    kind: Literal["interval"] = "interval"
    model_id: str
    version: str
    digest: str
    symbol: str
    target: Target
    as_of_ms: int
    price: Finite
    factor: Finite
    bar_ms: int
    horizon: int
    delay: int
    due_ms: int
    lower: Finite | None = None
    upper: Finite | None = None
    level: Finite | None = None
    scale: Finite = 0.0
    lean: Finite = 0.0
    is_volatility: bool = False


class HandedDrops(Contract):
    """Questions that came late, or about a bar that was asked about before."""

    kind: Literal["drops"] = "drops"
    model_id: str
    version: str
    digest: str
    late: int = 0
    repeated: int = 0


Handed = Annotated[HandedAnswer | HandedInterval | HandedDrops, Field(discriminator="kind")]
HANDED: TypeAdapter[tuple[Handed, ...]] = TypeAdapter(tuple[Handed, ...])


class HandoverEntry(NamedTuple):
    """One entry of the stream.

    Attributes:
        entry_id: the place in the one order of all workers.
        sender: a worker's life.
        first: the number of the first item among those that the sender ever handed over.
        items: JSON of `HANDED`.
    """

    entry_id: str
    sender: str
    first: int
    num: int
    items: bytes


def place_of(entry_id: str) -> tuple[int, int]:
    """An entry's id as numbers, which compare as the entries follow each other; (0, 0) before the first."""
    moment, _, number = (entry_id or "0-0").partition("-")
    return int(moment), int(number)
