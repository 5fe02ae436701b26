"""Graph of a follower: the primary's graph at each row of the classifier's window, then the classifier's own.

    rows (N, L + P - 1, F) → primary (N · L, P, ·) → its outputs beside the features (N, L, ·) → classifier
    `outputs` (N, 2 + K): the classifier's logits, then what the primary says at the newest row

Both graphs are taken as they are, node by node under a prefix, so that each answers to the bit as it does alone.

Legend: N windows, L rows of the classifier's window, P of the primary's, F features, K outputs of the primary.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from ml_workbench_service.learning.networks.followed.joint import Joint
from ml_workbench_service.learning.networks.onnx_builder import Graph

CLASSIFIER, PRIMARY = "classifier_", "primary_"


def followed_graph(classifier: ModelProto, primary_file: Path, joint: Joint) -> ModelProto:
    """`rows` (N, T, F) → `outputs` and `last_rows` (N, F).

    Raises:
        DataValidationError: the primary's graph was written for other versions of the operators.
    """
    graph, (length, window), num_said = Graph(joint.is_level_F), joint.windows_LP.shape, len(joint.mean_K)
    graph.add("Gather", ["rows", graph.constant("asked_features", joint.asked)], ["asked"], axis=2)
    graph.add("Gather", ["asked", graph.constant("asked_rows", joint.windows_LP)], ["unfolded"], axis=1)
    shape = graph.constant("asked_shape", np.array([-1, window, len(joint.asked)]))
    graph.add("Reshape", ["unfolded", shape], [f"{PRIMARY}rows"])
    graph.include(onnx.load(str(primary_file)), PRIMARY)
    by_row = graph.constant("said_shape", np.array([-1, length, num_said]))
    graph.add("Reshape", [f"{PRIMARY}outputs", by_row], ["said"])
    graph.add("Sub", ["said", graph.constant("said_mean", joint.mean_K)], ["said_centred"])
    graph.add("Div", ["said_centred", graph.constant("said_deviation", joint.deviation_K)], ["said_scaled"])
    own_rows = graph.constant("own_row_places", np.arange(window - 1, window - 1 + length))
    graph.add("Gather", ["rows", own_rows], ["own_rows"], axis=1)
    graph.add("Gather", ["own_rows", graph.constant("own_features", joint.own)], ["own"], axis=2)
    graph.add("Concat", ["own", "said_scaled"], [f"{CLASSIFIER}rows"], axis=2)
    graph.include(classifier, CLASSIFIER)
    graph.add("Gather", ["said", graph.constant("newest", np.int64(length - 1))], ["newest_said"], axis=1)
    graph.add("Concat", [f"{CLASSIFIER}outputs", "newest_said"], ["outputs"], axis=1)
    num_classes = classifier.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return graph.model("followed", num_outputs=num_classes + num_said)
