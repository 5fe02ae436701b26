"""Layers before the routes, from the outside in: the door, the fast paths of predictions, the bound of a body."""

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp

from ml_workbench_service.api.batches.door import BatchDoor
from ml_workbench_service.api.middleware import SizeByOperation
from ml_workbench_service.api.predict_door import PredictDoor


def put_layers(app: FastAPI, door: Callable[[ASGIApp], ASGIApp]) -> None:
    """The same before the service and before each of its predict workers, but for the door."""
    app.add_middleware(SizeByOperation)  # inside the door, which words it
    app.add_middleware(BatchDoor)
    app.add_middleware(PredictDoor)
    app.add_middleware(door)
