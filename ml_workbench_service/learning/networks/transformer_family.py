"""`TransformerFamily`: what the transformers share; their files add a name, what they learn, and a source.

Free of torch at import; training loads it.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from ml_workbench_service.contracts.contract import Finite
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import BatchSize, NetworkHyperparameters
from ml_workbench_service.learning.networks.network_family import NetworkFamily

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.transformer import TransformerShape
    from ml_workbench_service.learning.networks.windowed import Architecture

WINDOWS_PER_SECOND = 4_700.0
"""Trained at 24 rows, 64 units, 2 layers, ratio 2 on one thread, the overhead of steps apart."""
STEP_COPIES, SCORED_COPIES = 1.4, 1.1
"""Of the states that are counted, at the worst moment: a step frees them one by one, and blocks come back late."""
ATTENTION_COPIES = 2
"""Of every bar's weights of every other: before and after the softmax."""
STEP_OVERHEAD_S = 0.0015
"""Of every layer, in a gradient step of few windows."""


class TransformerHyperparameters(NetworkHyperparameters):
    """Sizes of the encoder, and the training loop's."""

    heads: int = Field(default=4, ge=1, le=64, description="Attention heads of each layer.")
    transformer_units: int = Field(
        default=64, ge=2, le=2048, validate_default=True,
        description="Units of each bar's state; a multiple of twice `heads`.",
    )  # fmt: skip
    layers: int = Field(default=2, ge=1, le=12, description="Blocks of attention and feed-forward layers.")
    feedforward_ratio: int = Field(
        default=2, ge=1, le=8, description="Hidden units of a feed-forward layer for each unit of the state."
    )
    dropout: Finite = Field(
        default=0.2, ge=0, lt=1, description="Share of units dropped from each branch of a block and before the output."
    )
    batch_size: BatchSize = 64

    @field_validator("transformer_units")
    @classmethod
    def _heads_have_pairs(cls, units: int, info: ValidationInfo) -> int:
        """Every head gets as many units as the others, in pairs that the rotary positions turn."""
        step = 2 * info.data.get("heads", 1)
        if units % step:
            below = max(units - units % step, step)
            nearest = " or ".join(map(str, sorted({below, below + step})))
            raise ValueError(f"`transformer_units` must be a multiple of twice `heads`, {step}; take {nearest}")
        return units


T = TypeVar("T", bound=TransformerHyperparameters, covariant=True)


class TransformerFamily(NetworkFamily[T], abstract=True):
    """A causal transformer encoder over the window; the newest bar's state, through one linear layer, is the answer.

    Fails where data are few: it knows less of time beforehand than a recurrent network. Cost per window and epoch grows
    with lookback x units², and with lookback² x units once the lookback is longer than the units are many.
    """

    def architecture(self, problem: TrainingProblem) -> "Architecture":
        """Blocks of attention and feed-forward layers, then one linear layer."""
        from ml_workbench_service.learning.networks.transformer import TransformerEncoderNetwork, transformer_graph
        from ml_workbench_service.learning.networks.windowed import Architecture

        is_level_F, dropout = problem.windows.scaler.is_level_F, self.hyperparameters.dropout
        shape, head = self.shape(), self.head(problem)
        return Architecture(
            build=lambda: TransformerEncoderNetwork(is_level_F, shape=shape, head=head, dropout=dropout),
            graph=lambda weights: transformer_graph(weights, shape=shape, is_level_F=is_level_F, head=head),
            head=head,
            description={"kind": "transformer_encoder", **asdict(shape)},
        )

    def shape(self) -> "TransformerShape":
        """The network's sizes."""
        from ml_workbench_service.learning.networks.transformer import TransformerShape

        hyper = self.hyperparameters
        return TransformerShape(
            units=hyper.transformer_units,
            heads=hyper.heads,
            layers=hyper.layers,
            feedforward_units=hyper.feedforward_ratio * hyper.transformer_units,
            lookback=hyper.lookback,
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, the weights, and the states of a gradient step or of a scoring batch.

        A step keeps every layer's states; the last layer asks for one bar alone. Scoring holds one layer's, and its
        attention, bar by bar, which the graph writes out and a gradient step never does.
        """
        hyper = self.hyperparameters
        units, ratio, deeper = hyper.transformer_units, hyper.feedforward_ratio, hyper.layers - 1
        step = hyper.batch_size * units * (10 + deeper * (14 + 2 * ratio)) * STEP_COPIES
        attention = ATTENTION_COPIES * hyper.heads * hyper.lookback if deeper else 0
        layer = (units * (8 + 2 * ratio) + 4 * num_features) * SCORED_COPIES
        scored = hyper.scored_windows(num_rows) * (layer + attention)
        weights = units * (num_features + units * (4 + 2 * ratio) * hyper.layers) * 4
        return int(num_rows * (num_features + 8) * 16 + hyper.lookback * max(step, scored) * 4 + 8 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for; a window's work and a step's overhead as fitted to measurements."""
        hyper = self.hyperparameters
        width = hyper.transformer_units / 64
        of_units = (2.5 + 5.5 * width + 6.0 * width**2) / 14.0
        of_rows = (hyper.lookback / 24) * (1.0 + hyper.lookback / 600)
        of_layers = (hyper.layers - 0.7) / 1.3  # the last one asks for one bar alone
        work = of_units * of_rows * of_layers * (6 + hyper.feedforward_ratio) / 8
        overhead_s = hyper.layers * STEP_OVERHEAD_S / hyper.batch_size
        return 5.0 + 0.5 * hyper.epochs * num_windows * (work / WINDOWS_PER_SECOND + overhead_s)
