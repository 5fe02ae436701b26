"""The protocol joins the service: over HTTP always, over gRPC where there is a port for it."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI

from ml_workbench_service.access.gate import Gate
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.inference_protocol.door import ProtocolErrors
from ml_workbench_service.api.inference_protocol.grpc_settings import GrpcSettings
from ml_workbench_service.api.inference_protocol.routes import probes_router, router


def install(app: FastAPI) -> None:
    """The routes, and around every other door the one that words their failures; call it last."""
    app.include_router(probes_router)
    app.include_router(router)
    app.add_middleware(ProtocolErrors)


async def listen(service: AppState, gate: Gate, settings: GrpcSettings) -> Callable[[], Awaitable[None]]:
    """Speaks gRPC; where no key is needed on loopback alone. What ends it is returned.

    Raises:
        UnavailableError: another process has the port.
    """
    if settings.port == 0:
        return _nothing
    from ml_workbench_service.api.inference_protocol.grpc_server import GrpcServer  # its libraries take 30 MB

    server = GrpcServer(service, gate)
    await server.start(settings)
    return server.stop


async def _nothing() -> None:
    """There is nothing to end."""
