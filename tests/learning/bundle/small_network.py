"""A network with a scaler, small enough to be written in a test, and what serving answers with the two."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.scaling import RowScaler, SymbolScale
from ml_workbench_service.learning.networks.onnx_builder import Graph

SYMBOLS = ("EUR/USD", "GBP/USD", "USD/JPY")
PRICE, SIGNAL = 1.1, 1e-4


def scaler_of(symbols: Sequence[str], *, is_level: bool = True) -> RowScaler:
    """A price and a signal; every symbol with units of its own."""
    scales = {
        symbol: SymbolScale(
            np.array([np.log(PRICE * 3.7**number) if is_level else PRICE, SIGNAL / 3]),
            np.array([0.0123, SIGNAL * (number + 0.7)]),
            np.array([0.001]),
        )
        for number, symbol in enumerate(symbols)
    }
    return RowScaler(("close", "signal"), (is_level, False), scales)


def write_network(file: Path, *, is_level: bool = True, has_positions: bool = False) -> None:
    """tanh of the last row times weights, plus the position."""
    graph = Graph([is_level, False], has_positions=has_positions)
    graph.add("MatMul", ["last_rows", graph.constant("weight", np.array([[0.3], [-0.7]], np.float32))], ["sums"])
    graph.add("Tanh", ["sums"], ["bent"])
    other = "positions" if has_positions else graph.constant("nothing", np.float32(0))
    graph.add("Add", ["bent", other], ["outputs"])
    onnx.save(graph.model("tanh", num_outputs=1), str(file))


def windows(num: int, *, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    rows_NTF = np.exp(chance.normal(0, 0.01, (num, 8, 2))) * np.array([PRICE, SIGNAL])
    rows_NTF[:, :, 1] *= chance.choice([-1.0, 1.0], (num, 8))
    return rows_NTF


def served(file: Path, scaler: RowScaler, symbols: Sequence[str], rows_NTF: np.ndarray, **more: np.ndarray) -> list:
    """What serving does: each window scaled by its symbol's scale, then the network."""
    scaled = np.stack([scaler.rows(symbol, rows_TF) for symbol, rows_TF in zip(symbols, rows_NTF, strict=True)])
    raw = OnnxNetwork(file).predict(scaled, **more)
    return [raw.outputs_NK, raw.last_rows_NF]
