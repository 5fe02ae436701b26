"""A predict replica on the wire: readiness and metrics of its own, and a clear word for what the control plane does."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from common_lib.exceptions import MisdirectedError, UnavailableError
from ml_workbench_service.access.signing_keys import GivenKeys
from ml_workbench_service.api.app_state import PredictState
from ml_workbench_service.api.errors import render
from ml_workbench_service.api.health import Readiness, inference
from ml_workbench_service.api.middleware import checked, checked_with_bearer
from ml_workbench_service.api.predict_workers.own_operations import (
    OWN_OF_REPLICAS,
    is_predict_workers,
    needs_table_process,
)
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.integrations.object_registry.kept_bucket import KeptBucket
from ml_workbench_service.integrations.replicas.handover import HandoverOutbox
from ml_workbench_service.workflows.announce_replica import SILENT_S, ReplicaAnnouncer
from ml_workbench_service.workflows.follow_serving_state import ServingStateFollower

router = APIRouter()


@dataclass(frozen=True)
class ReplicaState:
    """What its readiness speaks of."""

    predict: PredictState
    follower: ServingStateFollower
    outbox: HandoverOutbox
    announcer: ReplicaAnnouncer
    keys: GivenKeys
    registry: KeptBucket | None = None  # None: a folder

    @property
    def unready(self) -> str:
        """Why it is not ready; empty where it is. A version goes live here once it is in memory, so only a start can
        lack one; a later one that cannot be loaded leaves the one before it in force, and degrades."""
        if not self.follower.is_known:
            return (
                "what is live is not known yet: neither Redis nor a history of deployments has said it; check "
                "REDIS_URL and MODEL_REGISTRY_PATH, and that the control plane was started with ROLE=control"
            )
        if unanswered := self.follower.unanswered:
            return f"live versions are not in memory: {'; '.join(f'{each}: {why}' for each, why in unanswered.items())}"
        return ""

    def things(self) -> dict[str, OutsideThing]:
        """Everything it lives by."""
        return {
            "redis": self._redis(),
            "control_plane": self._control(),
            "serving_state": self._serving_state(),
            **({} if self.registry is None else {"model_registry": self.registry.thing()}),
            "hand_over": self._hand_over(),
            "live_models": self._live_models(),
            "signing_keys": self._signing_keys(),
            "inference": inference(self.predict.model_server),
            "feature_store": self.predict.workbench.feature_store.check(),
        }

    def _redis(self) -> OutsideThing:
        silent_s = self.announcer.redis_silent_s
        return _heard(silent_s, "answers go on, and what they leave behind waits in memory; check REDIS_URL")

    def _control(self) -> OutsideThing:
        meanwhile = (
            f"answers go on; {self.announcer.num_unsaved} parcels of them wait in Redis for the ledger, and intervals "
            "learn of this replica's own alone"
        )
        return _heard(self.announcer.control_silent_s, meanwhile)

    def _serving_state(self) -> OutsideThing:
        delay, behind = f"{self.follower.delay_s:.3f} s", f"{self.announcer.behind_s:.3f} s"
        if self.follower.follows == "redis":
            detail = f"followed through Redis; the newest news took {delay}, intervals are {behind} behind"
            return OutsideThing(mode="remote", state="ok", detail=detail)
        detail = (
            f"Redis is away: what was live last is served, or the registry's history; intervals are {behind} behind"
        )
        return OutsideThing(mode="remote", state="degraded", detail=detail)

    def _hand_over(self) -> OutsideThing:
        outbox, publisher = self.outbox, self.predict.publisher
        num = 0 if publisher is None else publisher.outbox
        dropped = f"; {outbox.num_dropped} were dropped, and never reach the ledger" if outbox.num_dropped else ""
        detail = f"{outbox.num_waiting} items for the ledger and {num} records for the queue wait for Redis{dropped}"
        return OutsideThing(mode="remote", state="degraded" if outbox.num_dropped else "ok", detail=detail)

    def _live_models(self) -> OutsideThing:
        cold = self.follower.cold
        detail = f"{self.follower.num_live} live, each in memory"
        if cold:
            named = "; ".join(f"{name}: {why}" for name, why in cold.items())
            detail = f"{len(cold)} cannot be loaded, and the version before answers where there is one: {named}"
        return OutsideThing(mode="folder", state="degraded" if cold else "ok", detail=detail)

    def _signing_keys(self) -> OutsideThing:
        named = ", ".join(self.keys.ids)
        if self.keys.is_pinned:
            return OutsideThing(mode="off", state="ok", detail=f"pinned by SIGNING_KEYS: {named}")
        state = "as Redis names them; whoever writes there could name others: pin them by SIGNING_KEYS"
        return OutsideThing(mode="remote", state="ok", detail=f"{named or 'none yet'}, {state}")


def _heard(silent_s: float, meanwhile: str) -> OutsideThing:
    """Something that was heard of lately, or is degraded, with what happens meanwhile."""
    if silent_s < SILENT_S:
        return OutsideThing(mode="remote", state="ok", detail="answers")
    return OutsideThing(mode="remote", state="degraded", detail=f"silent for {silent_s:.0f} s: {meanwhile}")


def replica_of(request: Request) -> ReplicaState:
    """The running replica; raises UnavailableError while it starts or stops."""
    found = getattr(request.app.state, "replica", None)
    if not isinstance(found, ReplicaState):
        raise UnavailableError("this replica is starting or stopping; try again in a moment", retry_after_s=1)
    return found


@router.get("/health/ready")
async def check_readiness(request: Request) -> Readiness:
    """Whether all that is live is in memory (else 503), and how everything is that it lives by."""
    replica = replica_of(request)
    things = await asyncio.to_thread(replica.things)
    if why := replica.unready:
        told = {name: each.model_dump(mode="json") for name, each in things.items()}
        raise UnavailableError(why, details={"things": told}, retry_after_s=1)
    is_degraded = any(each.state in ("degraded", "down") for each in things.values())
    return Readiness(status="degraded" if is_degraded else "ready", things=things)


@router.get("/metrics", dependencies=[Depends(checked), Depends(checked_with_bearer)])
async def read_metrics(request: Request) -> Response:
    """This replica's alone; each is scraped by itself."""
    metrics = replica_of(request).predict.metrics
    metrics.loaded_models.set(replica_of(request).predict.model_server.num_loaded)
    return Response(await asyncio.to_thread(metrics.render), media_type=CONTENT_TYPE_LATEST)


class ReplicaFigures(Collector):
    """What only a replica has."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        state = self._state
        for name, text, value in (
            ("replica_ready", "Whether all that is live is in memory.", float(not state.unready)),
            ("serving_state_news", "Number of the newest news in force.", state.follower.news_number),
            ("serving_state_delay_seconds", "From the newest news' being in Redis to their being in force here.",
             state.follower.delay_s),
            ("intervals_behind_seconds", "Age of the oldest answer that the live intervals here do not know of.",
             state.announcer.behind_s),
            ("redis_silent_seconds", "Since Redis was heard.", state.announcer.redis_silent_s),
            ("control_silent_seconds", "Since the control plane was heard.", state.announcer.control_silent_s),
            ("handover_waiting", "Answers that Redis has not taken yet.", state.outbox.num_waiting),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"ml_workbench_{name}", text, value=value)
        yield CounterMetricFamily(
            "ml_workbench_handover_dropped", "Answers that there was no room for.", value=state.outbox.num_dropped
        )


class HereOrAtControl:
    """What a replica does itself goes on; of everything else it says where it is done.

    Args:
        control: the control plane's address, as CONTROL_URL has it.
    """

    def __init__(self, app: ASGIApp, control: str | None) -> None:
        self._app, self._control = app, control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (self._app if refusal is None else render(refusal))(scope, receive, send)

    def _refusal(self, scope: Scope) -> MisdirectedError | None:
        if not is_predict_workers(scope["method"], scope["path"], own=OWN_OF_REPLICAS):
            what = "answers predictions, health and metrics alone"
        elif needs_table_process(scope):
            what = "reads neither Arrow nor bodies of more than 64 KiB, and explains no answers"
        else:
            return None
        where = self._control or "the control plane (CONTROL_URL, which is not set here, would name it)"
        return MisdirectedError(
            f"a predict replica {what}; for this ask {where}", details={"control_url": self._control}
        )
