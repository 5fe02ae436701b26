"""The routes of workers elsewhere over a store of jobs, on loopback, from a thread: to be stopped and started again."""

import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from ml_workbench_service.api import errors
from ml_workbench_service.api.elsewhere import routes
from ml_workbench_service.api.elsewhere.attempts import Desk, desk
from ml_workbench_service.jobs.job import JobStore
from tests.service_process import free_port

Answering = Callable[[Request], Awaitable[Response]]


class ControlPlane:
    """Serves while it is entered; `lose_answers` has so many of the next answers to posts never arrive."""

    def __init__(self, store: JobStore, workbench: Any = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lose_answers, self.lost_status = 0, 503
        self.asked: list[str] = []
        self._app = FastAPI()
        errors.install(self._app)
        self._app.include_router(routes.router, prefix="/api/v1")
        self._app.dependency_overrides[desk] = lambda: Desk(store, cast(Any, workbench))
        self._app.middleware("http")(self._count)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> "ControlPlane":
        """Answers when this returns."""
        config = uvicorn.Config(self._app, host="127.0.0.1", port=self.port, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Nobody answers any more."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=30)
        self._server = self._thread = None

    def __enter__(self) -> "ControlPlane":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _count(self, request: Request, call_next: Answering) -> Response:
        self.asked.append(f"{request.method} {request.url.path.partition('/worker')[2]}")
        answer = await call_next(request)
        if self.lose_answers and request.url.path.endswith("/events"):
            self.lose_answers -= 1
            return Response(status_code=self.lost_status)
        return answer
