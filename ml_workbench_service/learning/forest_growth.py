"""Growing an isolation forest ten trees at a time, so that it can be cancelled, watched, and gone on with.

scikit-learn draws every tree's seed from the forest's seed and the tree's number alone: trees that were read back from
a checkpoint and trees that were never lost make the same forest. A checkpoint holds the trees' nodes as plain bytes;
another version of scikit-learn lays nodes out differently, so that its checkpoints are not continued.

Legend: N windows, D derived values, E nodes of all trees.
"""

import logging
from typing import Any

import numpy as np

from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.learning.checkpoint import Checkpoint

TREES_A_STEP = 10
"""Every step goes over the trees so far once, which for one tree at a time would cost more than growing it."""

log = logging.getLogger(__name__)


def grow_forest(
    derived_ND: Floats32,
    *,
    num_trees: int,
    max_samples: int,
    seed: int,
    report: Report,
    checkpoint: Checkpoint | None = None,
) -> Any:
    """A fitted `sklearn.ensemble.IsolationForest`, every tree on all columns.

    Reports `mean_path`, the cuts that set a window of the newest trees apart, on average: the scale of the scores.

    Raises:
        JobCancelled: somebody asked for it, within ten trees.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(
        n_estimators=0, max_samples=min(max_samples, len(derived_ND)), random_state=seed, warm_start=True
    )
    if checkpoint is not None and _restore(forest, checkpoint, num_columns=derived_ND.shape[1]):
        report.say(f"going on after tree {forest.n_estimators}")
    while forest.n_estimators < num_trees:
        report.check()
        forest.n_estimators = min(forest.n_estimators + TREES_A_STEP, num_trees)
        forest.fit(derived_ND)
        if checkpoint is not None and forest.n_estimators < num_trees and checkpoint.due():
            _save(forest, checkpoint)
        report(forest.n_estimators, num_trees, mean_path=_mean_path(forest))
    return forest


def _mean_path(forest: Any) -> float:
    """Mean path length of the windows that the newest trees were grown on."""
    paths = []
    for estimator in forest.estimators_[-TREES_A_STEP:]:
        tree = estimator.tree_
        is_leaf, depth = tree.children_left < 0, tree.compute_node_depths() - 1
        paths.append(np.average(depth[is_leaf], weights=tree.n_node_samples[is_leaf]))
    return float(np.mean(paths))


def _save(forest: Any, checkpoint: Checkpoint) -> None:
    from sklearn import __version__

    states = [estimator.tree_.__getstate__() for estimator in forest.estimators_]
    arrays = {
        "nodes": np.frombuffer(b"".join(state["nodes"].tobytes() for state in states), dtype=np.uint8),
        "values": np.concatenate([state["values"].reshape(-1) for state in states]),
        "node_counts": np.array([state["node_count"] for state in states]),
        "depths": np.array([state["max_depth"] for state in states]),
    }
    checkpoint.save(arrays, {"trees": len(states), "scikit_learn": __version__})


def _restore(forest: Any, checkpoint: Checkpoint, *, num_columns: int) -> bool:
    """Puts a checkpoint's trees into an empty forest; False where there are none that this scikit-learn reads."""
    from sklearn import __version__
    from sklearn.tree import ExtraTreeRegressor
    from sklearn.tree._tree import NODE_DTYPE, Tree

    saved = checkpoint.load()
    if saved is None:
        return False
    arrays, state = saved
    if state["scikit_learn"] != __version__:
        log.warning("the checkpoint's trees are scikit-learn %s's, the forest begins anew", state["scikit_learn"])
        return False
    ends = np.cumsum(arrays["node_counts"])[:-1]
    nodes, values = np.split(arrays["nodes"].view(NODE_DTYPE), ends), np.split(arrays["values"], ends)
    for node_E, value_E, depth in zip(nodes, values, arrays["depths"].tolist(), strict=True):
        tree = Tree(num_columns, np.array([1], dtype=np.intp), 1)
        tree.__setstate__(
            {
                "nodes": node_E.copy(),
                "values": value_E.reshape(-1, 1, 1).copy(),
                "node_count": len(node_E),
                "max_depth": depth,
            }
        )
        estimator = ExtraTreeRegressor(max_features=1)
        estimator.tree_, estimator.n_features_in_, estimator.n_outputs_ = tree, num_columns, 1
        forest.__dict__.setdefault("estimators_", []).append(estimator)
    forest.estimators_features_ = [np.arange(num_columns)] * len(nodes)
    forest.n_estimators = len(nodes)
    return True
