"""Serving: the views, the login and the door put together, on a socket that is bound already."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui

from ml_workbench_client.page import login
from ml_workbench_client.page.door import Door
from ml_workbench_client.page.options import Options
from ml_workbench_client.page.service_watch import ServiceWatch
from ml_workbench_client.page.sessions import Sessions
from ml_workbench_client.page.shell import Visit

RECONNECT_S = 10.0
"""So long a browser may be away (a phone asleep, a lost network) and still find its page as it was."""

log = logging.getLogger(__name__)


def page_app(options: Options) -> Door:
    """The whole page as one ASGI app."""
    from ml_workbench_client.page import views as views  # registers them

    Visit.options = options
    Visit.watch = watch = ServiceWatch(options.service_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(watch.run(), name="service watch")
        yield
        task.cancel()
        await watch.close()

    sessions = Sessions(options.service_url)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(login.router(options, sessions))
    nicegui_app.on_exception(lambda error: log.error("a view failed: %r", error))
    ui.run_with(
        app,
        title="ML Workbench",
        favicon=Path(__file__).with_name("favicon.svg"),
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=RECONNECT_S,
        binding_refresh_interval=None,
        show_welcome_message=False,
    )
    return Door(app, options, sessions)


async def serve(options: Options, bound: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    config = uvicorn.Config(
        page_app(options), log_config=None, access_log=False, ws_max_size=16 * 1024 * 1024, timeout_graceful_shutdown=1
    )
    log.info("the page answers at http://%s:%d", *bound.getsockname()[:2])
    await uvicorn.Server(config).serve(sockets=[bound])
