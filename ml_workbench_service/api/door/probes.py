"""Probes of outside things for readiness: Redis with its append-only file, the tracking server, the folders of state
and registry, each with the last moment at which it was found well.

They are asked when readiness is, and every `ASK_EVERY_S` besides, so that the last good moment says when something went
away, not when somebody last looked.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ssl import SSLError
from typing import Literal
from urllib.parse import urlsplit

from common_lib.deadlines import closed_after
from common_lib.exceptions import PlatformError
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.contracts.extras import is_installed
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.integrations.strategy_engine import StrategyEngine

ASK_EVERY_S = 15.0
TRACKING_TIMEOUT_S = 1.0
STATE_DIR, REGISTRY = "state_dir", "model_registry"

log = logging.getLogger(__name__)


async def probed(service: AppState) -> dict[str, OutsideThing]:
    """What is asked here, side by side, so that two that hang cost the time of one."""
    redis, tracking, engine = await asyncio.gather(
        _asked_redis(service),
        asyncio.to_thread(probe_tracking, service),
        asyncio.to_thread(probe_strategy_engine, service.workbench.strategy_engine),
    )
    found = {STATE_DIR: service.state_folder.thing(), REGISTRY: service.registry_folder.thing()}
    found |= {"experiment_tracking": tracking, "redis": redis, "strategy_engine": engine}
    return service.last_good.noted(found)


def ask_again_and_again(service: AppState, stack: AsyncExitStack) -> None:
    """So that readiness knows when each outside thing was last well."""

    async def run() -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            try:
                await probed(service)
            except Exception:  # the next turn may go well
                log.exception("outside things could not be asked")

    task = asyncio.create_task(run(), name="probes")
    stack.callback(task.cancel)


async def _asked_redis(service: AppState) -> OutsideThing:
    try:
        return await service.queue_threads.run(probe_redis, service)
    except PlatformError as error:  # its answer drips
        return _redis(service, "down", error.message)


def probe_redis(service: AppState) -> OutsideThing:
    """Whether it answers, and whether what it has acknowledged goes to its disk."""
    queue = service.workbench.queue
    if queue is None:
        return OutsideThing(mode="off", state="down", detail=service.workbench.addresses.redis_fault)
    try:
        elapsed_s = queue.ping()
        kept = queue.persistence()
    except PlatformError as error:
        return _redis(service, "down", error.message)
    detail = f"answers in {elapsed_s * 1000:.1f} ms; {kept.said}"
    return _redis(service, "degraded" if kept.is_failing else "ok", detail)


def _redis(service: AppState, state: Literal["ok", "degraded", "down"], detail: str) -> OutsideThing:
    mode: Literal["embedded", "remote"] = "embedded" if service.workbench.addresses.redis_is_embedded else "remote"
    return OutsideThing(mode=mode, state=state, detail=detail)


def probe_tracking(service: AppState) -> OutsideThing:
    """Whether MLflow's server answers; the embedded store lies in STATE_DIR, and is as well as that."""
    addresses = service.workbench.addresses
    if addresses.tracking == "disabled":
        return OutsideThing(mode="off", state="disabled", detail="EXPERIMENT_TRACKING_URI=disabled")
    mode: Literal["embedded", "remote"] = "embedded" if addresses.tracking_is_embedded else "remote"
    if not is_installed("tracking"):
        detail = "the extra `tracking` is not installed: install it, or set EXPERIMENT_TRACKING_URI=disabled"
        return OutsideThing(mode=mode, state="degraded", detail=detail)
    parts = urlsplit(addresses.tracking)
    if parts.scheme not in ("http", "https"):
        if service.state_folder.thing().state == "down":
            return OutsideThing(mode=mode, state="down", detail="its store lies in STATE_DIR, which is away: see there")
        detail = "projected by the tracker process whenever there is something to tell"
        return OutsideThing(mode=mode, state="ok", detail=detail)
    fault = fault_of_server(addresses.tracking)
    if fault:
        detail = f"does not answer ({fault}): start it; what jobs tell meanwhile is sent once it is back"
        return OutsideThing(mode=mode, state="degraded", detail=detail)
    return OutsideThing(mode=mode, state="ok", detail="answers; projected by the tracker process")


def probe_strategy_engine(engine: StrategyEngine | None) -> OutsideThing:
    """Whether the engine answers: one that is away holds up nothing but deployments to it."""
    if engine is None:
        detail = "set STRATEGY_ENGINE_URL; deployments are on the stream"
        return OutsideThing(mode="off", state="disabled", detail=detail)
    fault = fault_of_server(engine.url, path="/health")
    if fault:
        detail = f"does not answer ({fault}): start it; no deployment to it succeeds until then, what is live goes on"
        return OutsideThing(mode="remote", state="degraded", detail=detail)
    return OutsideThing(mode="remote", state="ok", detail="answers; it is told of deployments")


def fault_of_server(address: str, *, path: str = "/version") -> str:
    """Why there is no answer; nothing where there is one, whatever it says: a server that wants a password is there."""
    parts = urlsplit(address)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "localhost", parts.port, timeout=TRACKING_TIMEOUT_S)
    try:
        with closed_after(connection, 2 * TRACKING_TIMEOUT_S):
            connection.request("GET", f"{parts.path.rstrip('/')}{path}")
            status = connection.getresponse().status
    except SSLError:
        return ""  # somebody is there; whether the certificate is trusted is MLflow's own client's to say
    except (OSError, HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    return f"status {status}" if status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED else ""
