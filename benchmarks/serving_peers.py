"""Model servers beside which ours is measured: what each is asked, how its answer is read, what we want to reach.

Each has an environment of its own (`tools/peer_environments.py`) and answers in one process: the fastest that it can do
on one core. They know the window in their own protocol; the graph and the scaling are the controls' own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Features = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Peer:
    """Another model server in an environment of its own.

    Attributes:
        script: below `contestants/`; called with the folder of the graph and a port.
        requirements: what its environment holds; none where it runs in ours.
        path: of the request.
        body_of: the request's body, of the window's columns in the model's order.
        forecast_of: the number in its answer.
        goal: how many times as many requests a second we want to answer; None where it is only shown.
    """

    name: str
    script: str
    requirements: tuple[str, ...]
    path: str
    body_of: Callable[[Features], str]
    forecast_of: Callable[[Any], float]
    goal: float | None


def rows_of(features: Features) -> list[list[float]]:
    """(T, F) as nested lists."""
    return [list(row) for row in zip(*features.values(), strict=True)]


def _v2_body(features: Features) -> str:
    rows = rows_of(features)
    values = [value for row in rows for value in row]
    tensor = {"name": "rows", "shape": [1, len(rows), len(rows[0])], "datatype": "FP64", "data": values}
    return json.dumps({"inputs": [tensor]})


PEERS = (
    Peer(
        "MLServer", "mlserver_serving", ("mlserver==1.7.*", "onnxruntime", "orjson", "uvicorn", "setuptools<81"),
        "/v2/models/served/infer", _v2_body, lambda answer: float(answer["outputs"][0]["data"][0]), 2.5,
    ),
    Peer(
        "BentoML", "bentoml_serving", ("bentoml==1.4.*", "onnxruntime", "orjson"), "/predict",
        lambda features: json.dumps({"features": features}), float, None,
    ),
    Peer(
        "mlflow models serve", "mlflow_serving", (), "/invocations",
        lambda features: json.dumps({"inputs": [rows_of(features)]}), lambda answer: float(answer["predictions"][0]),
        None,
    ),
)  # fmt: skip
