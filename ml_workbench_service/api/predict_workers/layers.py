"""Layers before the routes, from the outside in: the door, the fast paths of predictions, the bound of a body."""

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp

from ml_workbench_service.api.batches.door import BatchDoor
from ml_workbench_service.api.door.large_bodies import LargeBodies
from ml_workbench_service.api.door.straight_predictions import StraightPredictions
from ml_workbench_service.api.door.traced_requests import TracedRequests
from ml_workbench_service.api.middleware import SizeByOperation
from ml_workbench_service.api.predict_door import PredictDoor


def put_layers(
    app: FastAPI, door: Callable[[ASGIApp], ASGIApp], straight: StraightPredictions, *, traced: bool
) -> None:
    """The same before the service and before each of its predict workers, but for the door; `straight` is what the
    server may ask instead of them. Where requests are `traced` it may not: each has spans of its own, which need a
    task of its own (docs/decisions/0065)."""
    app.state.straight = None if traced else straight
    app.add_middleware(SizeByOperation)  # inside the door, which words it
    app.add_middleware(LargeBodies)
    app.add_middleware(BatchDoor)
    app.add_middleware(PredictDoor)
    app.add_middleware(door)
    if traced:
        app.add_middleware(TracedRequests)
