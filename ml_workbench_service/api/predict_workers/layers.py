"""Layers before the routes, from the outside in: the door, the fast path of predictions, the bound of a body."""

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from ml_workbench_service.api.middleware import ApiKey, AtTheDoor
from ml_workbench_service.api.predict_door import PredictDoor

MOST_BODY_BYTES = 16 * 1024 * 1024


def put_layers(app: FastAPI, *, api_key: ApiKey, needs_loopback: bool) -> None:
    """The same before the service and before each of its predict workers."""
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MOST_BODY_BYTES)  # inside the door, which words it
    app.add_middleware(PredictDoor, api_key=api_key)
    app.add_middleware(AtTheDoor, needs_loopback=needs_loopback)
