"""Boosted trees as a graph: the columns that trees read of a window, and LightGBM's text as one ensemble node.

Columns (N, D), in this order, each where `columns` asks for it:

    <feature>_lag<k>      the window's rows, oldest first; of a shorter window the rows that are not there are 0, which
                          is an ordinary row
    <feature>_last        the newest row, where the window's rows are not read (else it is `_lag0`)
    <feature>_mean        of the rows that are there; not of price levels, whose mean over the window is 0
    <feature>_slope       least squares over the rows that are there, by row

Means and slopes are poolings over each window's own rows: other sums depend on the batch. Training runs the same graph
(`columns_graph`), so that trees are grown on the very values that serving computes.

The trees stand in one `TreeEnsembleRegressor` over doubles. LightGBM compares and adds up in doubles, tree by tree; so
does the node, and every float32 goes the way that it goes in LightGBM without any threshold being rounded. With one
thread a row's sum does not depend on the rows beside it. A value that is not a number counts as LightGBM counts it: as
0 where training saw none missing, else as the split says.

The text is parsed here, so that a graph is made of a bundle's weights without lightgbm.

Legend: N windows, T rows, L the lookback, F features, D columns, K outputs, E nodes of all trees.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.learning.networks.boosted_trees.hyperparameters import Columns
from ml_workbench_service.learning.networks.onnx_builder import Graph

LAST = np.iinfo(np.int64).max
CATEGORICAL, DEFAULT_LEFT = 1, 2
MISSING_ZERO, MISSING_NAN = 1, 2
ZERO = float(np.float32(1e-35))
"""LightGBM reads what is no larger as 0."""
Finish = Callable[[Graph, str], None]
"""Nodes from the trees' sums, by name, to `outputs`."""


class WindowColumns(NamedTuple):
    """What the trees read.

    Attributes:
        is_level_F: the columns from which the window's mean is subtracted.
        lookback: rows of a whole window.
    """

    features: tuple[str, ...]
    is_level_F: tuple[bool, ...]
    lookback: int
    columns: Columns

    @property
    def names(self) -> tuple[str, ...]:
        """(D,) as LightGBM takes them: letters, digits and underscores, each once."""
        return tuple(f"{name}_{kind}" for name, kind in zip(self._words, self.kinds, strict=True))

    @property
    def kinds(self) -> tuple[str, ...]:
        """(D,) `lag<k>`, `last`, `mean` or `slope`."""
        return tuple(kind for kind, _ in self._layout)

    @property
    def feature_of(self) -> tuple[int, ...]:
        """(D,) the place of each column's feature."""
        return tuple(place for _, place in self._layout)

    @property
    def _layout(self) -> list[tuple[str, int]]:
        all_F = range(len(self.features))
        found: list[tuple[str, int]] = []
        if self.columns != "summary":
            found += [(f"lag{lag}", place) for lag in reversed(range(self.lookback)) for place in all_F]
        else:
            found += [("last", place) for place in all_F]
        if self.columns != "window":
            found += [("mean", place) for place in all_F if not self.is_level_F[place]]
            found += [("slope", place) for place in all_F]
        return found

    @property
    def _words(self) -> list[str]:
        plain = [re.sub(r"\W+", "_", feature, flags=re.ASCII) for feature in self.features]
        if len(set(plain)) < len(plain):
            plain = [f"{name}_{place}" for place, name in enumerate(plain)]
        return [plain[place] for place in self.feature_of]


def columns_graph(layout: WindowColumns) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, D), what the trees read, and `last_rows`: training's half of `trees_graph`."""
    graph = Graph(layout.is_level_F)
    _add_columns(graph, layout, "outputs")
    return graph.model("window_columns", num_outputs=len(layout.kinds))


def trees_graph(
    layout: WindowColumns, texts: Sequence[str], *, finish: Finish, num_raw: int, num_outputs: int
) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, K) and `last_rows` (N, F).

    Args:
        texts: LightGBM's, one a booster; of one booster with several classes each round has a tree a class.
        finish: from the sums to the outputs.
        num_raw: sums: boosters times classes.
    """
    graph = Graph(layout.is_level_F)
    _add_columns(graph, layout, "columns")
    graph.add("Cast", ["columns"], ["as_doubles"], to=TensorProto.DOUBLE)
    graph.add(
        "TreeEnsembleRegressor", ["as_doubles"], ["sums"], domain="ai.onnx.ml", **ensemble(texts, num_raw=num_raw)
    )
    finish(graph, "sums")
    return graph.model("boosted_trees", num_outputs=num_outputs)


def _add_columns(graph: Graph, layout: WindowColumns, output: str) -> None:
    parts = []
    if layout.columns != "summary":
        pads = graph.constant("rows_that_are_not_there", np.array([0, layout.lookback, 0, 0, 0, 0]))
        graph.add("Pad", [graph.windows, pads], ["padded"])
        ends = [graph.constant(name, np.array([value])) for name, value in (("end", LAST), ("time", 1))]
        graph.add("Slice", ["padded", graph.constant("begin", np.array([-layout.lookback])), *ends], ["whole"])
        graph.add("Flatten", ["whole"], ["lags"])
        parts.append("lags")
    else:
        parts.append("last_rows")
    if layout.columns != "window":
        stationary = np.flatnonzero(~np.array(layout.is_level_F))
        if len(stationary):
            _add_pooled(graph, graph.windows, "every_mean")
            graph.add("Gather", ["every_mean", graph.constant("stationary", stationary)], ["means"], axis=1)
            parts.append("means")
        _add_slopes(graph)
        parts.append("slopes")
    graph.add("Concat", parts, [output], axis=1)


def _add_pooled(graph: Graph, values: str, output: str) -> None:
    """Means over the rows (N, F)."""
    graph.add("Transpose", [values], [f"{output}_features_first"], perm=[0, 2, 1])
    graph.add("GlobalAveragePool", [f"{output}_features_first"], [f"{output}_pooled"])
    graph.add("Flatten", [f"{output}_pooled"], [output])


def _add_slopes(graph: Graph) -> None:
    """Least squares: the mean of x (t - mean t) · 12 / (T² - 1)."""
    one, half = graph.constant("one", np.float32(1)), graph.constant("half_a_row", np.float32(0.5))
    graph.add("Shape", ["rows"], ["lengths"], start=1, end=2)
    graph.add("Squeeze", ["lengths"], ["length"])
    graph.add("Range", [graph.constant("zero", np.int64(0)), "length", graph.constant("step", np.int64(1))], ["places"])
    graph.add("Cast", ["places"], ["moments"], to=TensorProto.FLOAT)
    graph.add("Cast", ["length"], ["num_rows"], to=TensorProto.FLOAT)
    graph.add("Sub", ["num_rows", one], ["last_moment"])
    graph.add("Mul", ["last_moment", half], ["mean_moment"])
    graph.add("Sub", ["moments", "mean_moment"], ["from_the_middle"])
    graph.add("Mul", ["num_rows", "num_rows"], ["squared_length"])
    graph.add("Sub", ["squared_length", one], ["twelve_variances"])
    graph.add("Div", [graph.constant("twelve", np.float32(12)), "twelve_variances"], ["by_variance"])
    graph.add("Mul", ["from_the_middle", "by_variance"], ["weights_T"])
    graph.add("Unsqueeze", ["weights_T", graph.constant("by_feature", np.array([1]))], ["weights_T1"])
    graph.add("Mul", [graph.windows, "weights_T1"], ["products"])
    _add_pooled(graph, "products", "slopes")


class Tree(NamedTuple):
    """One tree of LightGBM's text; children from 0 up are nodes, below that the complement of a leaf's number.

    Attributes:
        not_a_number_is_left: where a value that is none goes at each node.
    """

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    leaf_value: Floats
    not_a_number_is_left: Bools


def parse(text: str) -> list[Tree]:
    """The trees of a booster's text.

    Raises:
        ValueError: trees that this service grows none of: categorical splits, linear leaves, zeros as missing values.
    """
    blocks = text.partition("\nend of trees")[0].split("\nTree=")[1:]
    return [_tree(dict(line.split("=", 1) for line in block.splitlines()[1:] if "=" in line)) for block in blocks]


def _tree(entries: dict[str, str]) -> Tree:
    leaf_value = np.array(entries["leaf_value"].split(), dtype=np.float64)
    if int(entries["num_leaves"]) == 1:
        none, nothing = np.empty(0, np.int64), np.empty(0)
        return Tree(none, nothing, none, none, leaf_value, none.astype(bool))
    kind = np.array(entries["decision_type"].split(), dtype=np.int64)
    missing = (kind >> 2) & 3
    if (kind & CATEGORICAL).any() or (missing == MISSING_ZERO).any() or entries.get("is_linear", "0") != "0":
        raise ValueError("trees with categorical splits, linear leaves or zeros as missing values have no graph here")
    threshold = _around_zero(np.array(entries["threshold"].split(), dtype=np.float64))
    feature, left, right = (
        np.array(entries[name].split(), dtype=np.int64) for name in ("split_feature", "left_child", "right_child")
    )
    by_default = (kind & DEFAULT_LEFT) > 0
    return Tree(
        feature, threshold, left, right, leaf_value, np.where(missing == MISSING_NAN, by_default, threshold >= 0)
    )


def _around_zero(threshold: Floats) -> Floats:
    """Thresholds among the values that LightGBM reads as 0 move to the end of these: where 0 goes, all of them go."""
    is_zero = np.abs(threshold) <= ZERO
    return np.where(is_zero, np.where(threshold < 0, np.nextafter(-ZERO, -1.0), ZERO), threshold)


def ensemble(texts: Sequence[str], *, num_raw: int) -> dict[str, Any]:
    """Attributes of the node: nodes of a tree first, then its leaves; trees in the order in which LightGBM adds them.

    Args:
        texts: of each booster.
        num_raw: sums; the trees of a booster take turns at its own.
    """
    a_booster = num_raw // len(texts)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*_NODES, *_LEAVES)}
    number = 0
    for place, text in enumerate(texts):
        for turn, tree in enumerate(parse(text)):
            for name, values in _arrays(tree, number, place * a_booster + turn % a_booster).items():
                parts[name].append(values)
            number += 1
    found = {name: np.concatenate(values) for name, values in parts.items()}
    is_leaf = found.pop("is_leaf")
    doubles = {
        f"{name}_as_tensor": numpy_helper.from_array(found.pop(name), name)
        for name in ("nodes_values", "target_weights")
    }
    return {
        "n_targets": num_raw,
        "aggregate_function": "SUM",
        "nodes_modes": np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        **doubles,
        **{name: values.tolist() for name, values in found.items()},
    }


_NODES = (
    "is_leaf", "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_truenodeids",
    "nodes_falsenodeids", "nodes_missing_value_tracks_true",
)  # fmt: skip
_LEAVES = ("target_treeids", "target_nodeids", "target_ids", "target_weights")


def _arrays(tree: Tree, number: int, target: int) -> dict[str, np.ndarray]:
    num_nodes, num_leaves = len(tree.feature), len(tree.leaf_value)
    ids_E, none = np.arange(num_nodes + num_leaves), np.zeros(num_leaves, np.int64)

    def children(side: Ints) -> Ints:
        return np.concatenate([np.where(side >= 0, side, num_nodes + ~side), none])

    return {
        "is_leaf": ids_E >= num_nodes,
        "nodes_treeids": np.full(len(ids_E), number),
        "nodes_nodeids": ids_E,
        "nodes_featureids": np.concatenate([tree.feature, none]),
        "nodes_values": np.concatenate([tree.threshold, none.astype(np.float64)]),
        "nodes_truenodeids": children(tree.left),
        "nodes_falsenodeids": children(tree.right),
        "nodes_missing_value_tracks_true": np.concatenate([tree.not_a_number_is_left.astype(np.int64), none]),
        "target_treeids": np.full(num_leaves, number),
        "target_nodeids": ids_E[num_nodes:],
        "target_ids": np.full(num_leaves, target),
        "target_weights": tree.leaf_value,
    }
