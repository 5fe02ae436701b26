"""Estimates of a follower: what its classifier needs, and what asking its primary at every row adds.

A whole window has L + P - 1 rows, of which the graph unfolds L windows of P rows for the primary: a scoring batch asks
the primary about L times as many windows as it has. What the primary's family says of its own windows is taken times
how many more they are; its gradient step is not among them.

Legend: L rows of the classifier's window, P of the primary's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import ModelType, PrimaryReference
from ml_workbench_service.learning.interfaces.family import AnyFamily, family_for
from ml_workbench_service.learning.interfaces.hyperparameters import SCORED_SHARE, scored_windows

FLOAT_BYTES = 4
COPIES = 3
"""Of what is unfolded: gathered, reshaped, and as the primary's first node reads it."""
FORWARD_SHARE = 1 / 3
"""Of a pass of training: without its gradient step."""
READS_OF_PARTS = 3
"""How often the calibration and the test part are asked about: decoder, figures, positions."""


@dataclass(frozen=True)
class FollowerEstimate:
    """What a training that follows a primary needs.

    Attributes:
        card: the primary's.
        num_reads: features that the classifier reads beside the primary's outputs.
    """

    card: ModelCard
    num_reads: int

    @classmethod
    def of(cls, card: ModelCard, reference: PrimaryReference) -> "FollowerEstimate":
        """Of a primary that was planned."""
        return cls(card, len(reference.reads))

    def memory_bytes(self, classifier: AnyFamily, num_rows: int) -> int:
        """What the classifier's training, or the judging of the whole graph, holds at most beyond the libraries."""
        num_outputs = len(self.card.outputs)
        kept = num_rows * (self.num_reads + 2 * num_outputs) * 2 * FLOAT_BYTES
        return kept + max(
            classifier.memory_bytes(num_rows, self.num_reads + num_outputs), self._judged_bytes(classifier, num_rows)
        )

    def seconds(self, classifier: AnyFamily, *, num_windows: int, num_rows: int, split: float) -> float:
        """The classifier's training, and one answer of the primary at each row, and at L rows of each judged window."""
        passes = 1 + READS_OF_PARTS * split * classifier.lookback
        return classifier.seconds(num_windows) + passes * self._forward_s(num_rows)

    def _judged_bytes(self, classifier: AnyFamily, num_rows: int) -> int:
        """A scoring batch of whole windows, unfolded, and what the primary holds of it."""
        length, window, num_features = classifier.lookback, self.card.lookback, len(self.card.features)
        asked = scored_windows(num_rows, length + window - 1) * length
        own = scored_windows(num_rows, window)  # what the family's own figure is of
        family, rows = self._family({"batch_size": 1}), int(own / SCORED_SHARE)
        of_batch = family.memory_bytes(rows, num_features) - family.memory_bytes(0, num_features)
        unfolded = COPIES * asked * window * num_features * FLOAT_BYTES
        return int(unfolded + of_batch * asked / own)

    def _forward_s(self, num_rows: int) -> float:
        """Of the primary, asked once about each of so many windows."""
        family = self._family({})
        hyper = family.hyperparameters.model_dump()
        passes = 0.5 * float(hyper.get("epochs", hyper.get("num_iterations", 2)))  # as the families count them
        return FORWARD_SHARE * (family.seconds(num_rows) - family.seconds(0)) / passes

    def _family(self, changes: Mapping[str, Any]) -> AnyFamily:
        """The primary's, as it was trained, with these hyper-parameters where it has them."""
        kind, known = family_for(ModelType(self.card.type), self.card.family), self.card.hyperparameters
        return kind({**known, **{name: value for name, value in changes.items() if name in known}})
