"""Graph of an ensemble: its members' graphs side by side, and the weighted mean of their outputs.

The ONNX graph has its members' graphs side by side over the same rows. Every name inside a member gets the member's
prefix; only the inputs `rows` (and `positions`) are shared. The mean is made of products with a constant and sums of
two, in the members' order: onnxruntime rounds each element by itself, so that an answer does not depend on the windows
beside it where the members' do not.

A file of its own, since the API process reaches `ensemble.py` and has no use for onnx.

Legend: N windows, T rows, F features, K outputs, M members.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from ml_workbench_service.contracts.market import Floats32

SHARED = {"rows", "positions", ""}
"""The inputs, and what stands for an input or output that a node leaves out."""


def mean_graph(graphs: Sequence[ModelProto], weights_M: Floats32) -> ModelProto:
    """`rows` (N, T, F), perhaps `positions` (N, 1) → `outputs` (N, K), the weighted mean, and `last_rows` (N, F).

    Args:
        graphs: the members' graphs, which have the same inputs, outputs and versions of operators; two or more.
        weights_M: what each member's outputs count.
    """
    first = graphs[0]
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    for number, model in enumerate(graphs):
        assert model.opset_import == first.opset_import, "members of one family are written for one set of operators"
        names = {"last_rows": "last_rows"} if number == 0 else {}
        nodes += [renamed(node, f"member{number}_", names) for node in model.graph.node]
        constants += [moved(each, f"member{number}_") for each in model.graph.initializer]
        constants.append(numpy_helper.from_array(np.array(weights_M[number], dtype=np.float32), f"weight_{number}"))
        nodes.append(helper.make_node("Mul", [f"member{number}_outputs", f"weight_{number}"], [f"share_{number}"]))
    total = "share_0"
    for number in range(1, len(graphs)):
        summed = "outputs" if number == len(graphs) - 1 else f"sum_{number}"
        nodes.append(helper.make_node("Add", [total, f"share_{number}"], [summed]))
        total = summed
    model = helper.make_model(
        helper.make_graph(nodes, "ensemble", list(first.graph.input), list(first.graph.output), constants),
        opset_imports=list(first.opset_import),
        ir_version=first.ir_version,
        producer_name=first.producer_name,
    )
    checker.check_model(model, full_check=True)
    return model


def renamed(node: NodeProto, prefix: str, names: Mapping[str, str]) -> NodeProto:
    """A copy whose values have the prefix, but for those with a name of their own and the shared ones."""
    assert not any(each.type == AttributeProto.GRAPH for each in node.attribute), "a graph inside a node has own names"
    copy = NodeProto()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        values[:] = [names.get(name, name if name in SHARED else prefix + name) for name in values]
    if copy.name:
        copy.name = prefix + copy.name
    return copy


def moved(constant: TensorProto, prefix: str) -> TensorProto:
    """A copy whose name has the prefix."""
    copy = TensorProto()
    copy.CopyFrom(constant)
    copy.name = prefix + constant.name
    return copy
