"""`TransformerFamily`: what the transformers share; their files add a name, a type, what they learn, and a source.

Free of torch at import; training loads it.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.heads import Head
    from ml_workbench_service.learning.networks.transformer import TransformerShape

MIN_WINDOW = 3
"""Transformers train on windows from this length up, so that a short request is no foreign input."""
WINDOWS_PER_SECOND = 4_700.0
"""Trained at 24 rows, 64 units, 2 layers, ratio 2 on one thread, the overhead of steps apart."""
STEP_OVERHEAD_S = 0.0015
"""Of every layer, in a gradient step of few windows."""


class TransformerHyperparameters(Contract):
    """Sizes of the encoder, and those of the training loop."""

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
    learning_rate: Finite = Field(default=0.001, gt=0, le=1, description="Step of Adam.")
    batch_size: int = Field(default=64, ge=1, le=65536, description="Windows per gradient step.")
    epochs: int = Field(default=100, ge=1, le=10_000, description="Most passes over the training part.")
    lookback: int = Field(default=24, ge=MIN_WINDOW, le=1024, description="Rows of a window, oldest first.")
    patience: int = Field(
        default=10, ge=1, le=10_000, description="Epochs without improvement on the stopping part before training ends."
    )

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


class TransformerFamily(Family, abstract=True):
    """A causal transformer encoder over the window; the newest bar's state, through one linear layer, is the answer.

    Fails where data are few: it knows less of time beforehand than a recurrent network. Cost per window and epoch grows
    with lookback x units², and with lookback² x units once the lookback is longer than the units are many.
    """

    min_window: ClassVar[int] = MIN_WINDOW

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Adam with gradient clipping, early stopping on the part `stop`, the best epoch's weights."""
        from dataclasses import asdict

        from ml_workbench_service.learning.networks.transformer import TransformerEncoderNetwork, transformer_graph
        from ml_workbench_service.learning.networks.windowed import train

        hyper: Any = self.hyperparameters
        is_level_F = problem.windows.scaler.is_level_F
        shape, head = self.shape(), self.head(problem)
        return train(
            lambda: TransformerEncoderNetwork(is_level_F, shape=shape, head=head, dropout=hyper.dropout),
            problem,
            hyperparameters=hyper,
            shortest_window=self.min_window,
            outputs=head.names,
            objective=head.objective,
            accelerator=accelerator,
            report=report,
            graph=lambda weights: transformer_graph(weights, shape=shape, is_level_F=is_level_F, head=head),
            description={"kind": "transformer_encoder", **asdict(shape)},
        )

    def head(self, problem: TrainingProblem) -> "Head":
        """What the last layer is for: forecasts, unless a subclass learns something else."""
        from ml_workbench_service.learning.networks.heads import head_for

        return head_for(problem)

    def shape(self) -> "TransformerShape":
        """The network's sizes."""
        from ml_workbench_service.learning.networks.transformer import TransformerShape

        hyper: Any = self.hyperparameters
        return TransformerShape(
            units=hyper.transformer_units,
            heads=hyper.heads,
            layers=hyper.layers,
            feedforward_units=hyper.feedforward_ratio * hyper.transformer_units,
            lookback=hyper.lookback,
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, and what was measured for the states that a training step keeps and that scoring 4,096 needs."""
        hyper: Any = self.hyperparameters
        units, ratio, deeper = hyper.transformer_units, hyper.feedforward_ratio, hyper.layers - 1
        kept = hyper.batch_size * (10 + deeper * (14 + 2 * ratio))
        scored = max(hyper.batch_size, 98_304 // hyper.lookback) * (8 + 2 * ratio)
        states = (
            hyper.lookback
            * (units * (kept + scored) + 4 * num_features * max(hyper.batch_size, 98_304 // hyper.lookback))
            * 4
        )
        weights = units * (num_features + units * (4 + 2 * ratio) * hyper.layers) * 4
        return int(num_rows * (num_features + 8) * 16 + 1.3 * states + 8 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for; a window's work and a step's overhead as fitted to measurements."""
        hyper: Any = self.hyperparameters
        width = hyper.transformer_units / 64
        of_units = (2.5 + 5.5 * width + 6.0 * width**2) / 14.0
        of_rows = (hyper.lookback / 24) * (1.0 + hyper.lookback / 600)
        of_layers = (hyper.layers - 0.7) / 1.3  # the last one asks for one bar alone
        work = of_units * of_rows * of_layers * (6 + hyper.feedforward_ratio) / 8
        overhead_s = hyper.layers * STEP_OVERHEAD_S / hyper.batch_size
        return float(5.0 + 0.5 * hyper.epochs * num_windows * (work / WINDOWS_PER_SECOND + overhead_s))
