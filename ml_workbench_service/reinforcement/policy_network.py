"""Policy network: fully connected layers over a window and the position held; in torch, for stable-baselines3, as ONNX.

The first operation is the window stage: level columns lose their mean over the window. Rows that a short window lacks
count as average, so they are zero after it. Then fully connected layers read all rows and the position at once.

Products with a constant matrix (Gemm) gave the same bits for a window alone and among 2 to 300 others, for 10 to 1,000
inputs and 8 to 128 units; sums of whole numbers are exact in any order: so a graph's answer is its window's own.

`Layers` has its gradient written out. For two layers of 64 units and a batch of 64, torch's automatic differentiation
costs three times its products: it builds a graph of some forty nodes for every step. Tests hold these gradients
against it.

Legend: N windows, T rows, L the lookback, F features, O = L * F + 1 numbers of an observation, A = 3 actions, E edges
of a feature, S states of a table, B inputs of a batch, D numbers of an input.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.decoders.action import greedy_actions
from ml_workbench_service.learning.networks.onnx_builder import Graph

Activation = Literal["tanh", "relu"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Layers:
    """Fully connected layers over the parameters of `nn.Linear` modules; one batch at a time.

    Args:
        linear: the layers, which keep their parameters.
        activation: between them.
    """

    def __init__(self, linear: Sequence[nn.Linear], activation: Activation) -> None:
        self.linear = tuple(linear)
        self.activation: Activation = activation
        self._activate = ACTIVATIONS[activation]
        self._inputs: list[Tensor] = []

    def __call__(self, inputs_BD: Tensor) -> Tensor:
        """Outputs (B, A); differentiable as usual."""
        hidden = inputs_BD
        for layer in self.linear[:-1]:
            hidden = self._activate(nn.functional.linear(hidden, layer.weight, layer.bias))
        return nn.functional.linear(hidden, self.linear[-1].weight, self.linear[-1].bias)

    @torch.no_grad()
    def forward(self, inputs_BD: Tensor) -> Tensor:
        """Outputs (B, A), with what `backward` needs kept."""
        self._inputs = [inputs_BD]
        for layer in self.linear[:-1]:
            self._inputs.append(self._activate(torch.addmm(layer.bias, self._inputs[-1], layer.weight.t())))
        return torch.addmm(self.linear[-1].bias, self._inputs[-1], self.linear[-1].weight.t())

    @torch.no_grad()
    def backward(self, slopes_BA: Tensor) -> None:
        """Writes the gradient of every parameter, given the loss's slopes at the outputs of the last `forward`."""
        slopes = slopes_BA
        for number in range(len(self.linear) - 1, -1, -1):
            layer, inputs = self.linear[number], self._inputs[number]
            torch.mm(slopes.t(), inputs, out=_gradient(layer.weight))
            torch.sum(slopes, 0, out=_gradient(layer.bias))
            if number:
                through = 1 - inputs * inputs if self.activation == "tanh" else inputs > 0
                slopes = torch.mm(slopes, layer.weight) * through


def _gradient(parameter: Tensor) -> Tensor:
    """Where the gradient belongs: a view of the optimizer's flat vector, or its own memory."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


NUM_ACTIONS = 3
OPERATORS = {"tanh": "Tanh", "relu": "Relu"}


def layers_graph(
    weights: Mapping[str, np.ndarray],
    *,
    lookback: int,
    is_level_F: Sequence[bool],
    activation: str,
    gives_probabilities: bool,
) -> ModelProto:
    """The graph of a `PolicyNetwork` with these weights (`layers.0.weight`, `layers.0.bias` …)."""
    graph = Graph(is_level_F, has_positions=True)
    num_values = lookback * len(is_level_F)
    graph.add("Shape", ["rows"], ["num_rows"], start=1, end=2)
    graph.add("Sub", [graph.constant("lookback", np.array([lookback])), "num_rows"], ["num_missing"])
    none, after = graph.constant("none", np.array([0])), graph.constant("none_after", np.array([0, 0, 0]))
    graph.add("Concat", [none, "num_missing", none, after], ["paddings"], axis=0)
    graph.add("Pad", [graph.windows, "paddings"], ["whole_windows"])
    graph.add("Reshape", ["whole_windows", graph.constant("flat", np.array([-1, num_values]))], ["values"])
    graph.add("Concat", ["values", "positions"], ["hidden_0"], axis=1)
    num_layers = len(weights) // 2
    for number in range(num_layers):
        layer = [graph.constant(f"{part}_{number}", weights[f"layers.{number}.{part}"]) for part in ("weight", "bias")]
        graph.add("Gemm", [f"hidden_{number}", *layer], [f"layer_{number}"], transB=1)
        if number + 1 < num_layers:
            graph.add(OPERATORS[activation], [f"layer_{number}"], [f"hidden_{number + 1}"])
    last = f"layer_{num_layers - 1}"
    if gives_probabilities:
        graph.add("Softmax", [last], ["outputs"], axis=-1)
    else:
        graph.add("Identity", [last], ["outputs"])
    return graph.model("policy", num_outputs=NUM_ACTIONS)


def table_graph(values_SA: np.ndarray, edges_FE: np.ndarray, *, is_level_F: Sequence[bool]) -> ModelProto:
    """The graph of a table: bins of the last row's features and the rounded position choose a row of values.

    Args:
        values_SA: float32, by `tabular_q_kernels.state_of`.
        edges_FE: float32, ascending; beyond any value where a feature has fewer bins.
        is_level_F: the columns from which the window's mean is subtracted.
    """
    graph = Graph(is_level_F, has_positions=True)
    num_features, num_edges = edges_FE.shape
    strides_F = (num_edges + 1) ** np.arange(num_features)[::-1] * NUM_ACTIONS
    last_axis = graph.constant("last_axis", np.array([-1]))
    graph.add("Unsqueeze", ["last_rows", last_axis], ["values_of_features"])
    graph.add("Greater", ["values_of_features", graph.constant("edges", edges_FE)], ["is_above"])
    graph.add("Cast", ["is_above"], ["ones_above"], to=TensorProto.INT64)
    graph.add("ReduceSum", ["ones_above", last_axis], ["bins"], keepdims=0)
    graph.add("Mul", ["bins", graph.constant("strides", strides_F.astype(np.int64))], ["places"])
    graph.add("ReduceSum", ["places", last_axis], ["first_state"], keepdims=1)
    graph.add("Round", ["positions"], ["rounded"])
    graph.add("Cast", ["rounded"], ["held"], to=TensorProto.INT64)
    graph.add(
        "Clip", ["held", graph.constant("short", np.int64(-1)), graph.constant("long", np.int64(1))], ["position"]
    )
    graph.add("Add", ["position", graph.constant("one", np.array([1]))], ["position_place"])
    graph.add("Add", ["first_state", "position_place"], ["state"])
    graph.add("Squeeze", ["state", last_axis], ["states"])
    graph.add("Gather", [graph.constant("table", values_SA), "states"], ["outputs"], axis=0)
    return graph.model("policy_table", num_outputs=NUM_ACTIONS)


class WindowStage(nn.Module):
    """Windows and positions → what the first layer reads."""

    def __init__(self, is_level_F: Sequence[bool], lookback: int) -> None:
        super().__init__()
        self.lookback, self.num_features = lookback, len(is_level_F)
        self.is_level_F: Tensor
        self.register_buffer("is_level_F", torch.tensor(is_level_F, dtype=torch.float32), persistent=False)
        self._any_level = any(is_level_F)

    @property
    def num_observed(self) -> int:
        """Numbers of an observation (O)."""
        return self.lookback * self.num_features + 1

    def windows(self, rows_NTF: Tensor) -> Tensor:
        """Level columns less their mean over the window."""
        if not self._any_level:
            return rows_NTF
        return rows_NTF - rows_NTF.mean(dim=1, keepdim=True) * self.is_level_F

    def forward(self, rows_NTF: Tensor, positions_N1: Tensor) -> Tensor:
        """What the first layer reads (N, O)."""
        flat = self.windows(rows_NTF).flatten(1)
        missing = self.num_observed - 1 - flat.shape[1]
        return torch.cat([nn.functional.pad(flat, (missing, 0)), positions_N1], dim=1)


class ObservedWindow(BaseFeaturesExtractor):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """The window stage as a features extractor of stable-baselines3: it reads whole observations (N, O)."""

    def __init__(self, observation_space: Any, *, is_level_F: Sequence[bool], lookback: int) -> None:
        stage = WindowStage(is_level_F, lookback)
        super().__init__(observation_space, features_dim=stage.num_observed)
        self.stage = stage

    def forward(self, observations_NO: Tensor) -> Tensor:
        """What the first layer reads (N, O)."""
        rows_NTF = observations_NO[:, :-1].reshape(-1, self.stage.lookback, self.stage.num_features)
        staged: Tensor = self.stage(rows_NTF, observations_NO[:, -1:])
        return staged


class PolicyNetwork(nn.Module):
    """What serves: the stage and the layers, which may be shared with the algorithm that trains them.

    Args:
        stage: the window stage.
        layers: the linear layers, the last one with an output for each action.
        activation: between the layers.
        gives_probabilities: softmax at the end; else the last layer's values are the outputs.
    """

    def __init__(
        self, stage: WindowStage, layers: Sequence[nn.Linear], *, activation: Activation, gives_probabilities: bool
    ) -> None:
        super().__init__()
        self.stage = stage
        self.layers = nn.ModuleList(layers)
        self.gives_probabilities = gives_probabilities
        self.stack = Layers(layers, activation)

    def values(self, inputs_NO: Tensor) -> Tensor:
        """The last layer's values (N, A) of what the stage gave."""
        return self.stack(inputs_NO)

    def forward(self, rows_NTF: Tensor, positions_N1: Tensor) -> Tensor:
        """Outputs (N, A)."""
        values_NA = self.values(self.stage(rows_NTF, positions_N1))
        return values_NA.softmax(dim=1) if self.gives_probabilities else values_NA

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights, by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}

    @torch.inference_mode()
    def answer(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """Outputs and last rows, as the exported graph must give them; flat unless positions are given."""
        rows = self._tensor(rows_NTF)
        positions = self._tensor(np.zeros(len(rows_NTF), np.float32) if positions_N is None else positions_N)
        outputs_NA = self(rows, positions[:, None])
        return RawPrediction(outputs_NA.cpu().numpy(), self.stage.windows(rows)[:, -1].cpu().numpy())

    def act(self, rows_NTF: Floats32, positions_N: Floats32) -> Ints:
        """The greedy actions (N,), as `reinforcement.environment.walk` asks for them."""
        return greedy_actions(self.answer(rows_NTF, positions_N).outputs_NK)

    def _tensor(self, values: Floats32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.stage.is_level_F.device)
