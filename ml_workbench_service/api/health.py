"""Health checks (`/health`, `/live`, `/ready` below it) and `/metrics`: cheap for probes, honest for people."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from common_lib.exceptions import PlatformError
from ml_workbench_service import __version__
from ml_workbench_service.agents.status import agent_folder, read_agent
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.door.probes import probed
from ml_workbench_service.api.middleware import checked, checked_with_bearer
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.contracts.replicas import ReplicaReport
from ml_workbench_service.contracts.runners import PredictProcesses
from ml_workbench_service.evaluation.todays_verdicts import with_todays_verdicts
from ml_workbench_service.jobs.guarded_reading import SET_ASIDE, name_of
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model_server import ModelServer


class Health(Contract):
    """The original specification's health answer."""

    status: Literal["healthy"] = "healthy"
    version: str = __version__


class Readiness(Contract):
    """Every outside thing with its mode and state; a degraded extra is not an outage."""

    status: Literal["ready", "degraded"]
    version: str = __version__
    things: dict[str, OutsideThing]


alive = APIRouter(tags=["health"])
"""What a predict worker answers by itself."""
router = APIRouter(tags=["health"])
MOST_NAMED = 5
"""Versions or files that a sentence names; lists of models, and the log, name more."""
METRICS_ANSWER: dict[str, Any] = {
    "description": "Text as Prometheus reads it.",
    "content": {
        "text/plain": {
            "schema": {"type": "string"},
            "example": 'ml_workbench_jobs_total{kind="train",status="succeeded"} 2.0\n',
        }
    },
}


@alive.get("/health", summary="Is it up?")
async def check_health() -> Health:
    """Exactly `{"status": "healthy", "version": …}`."""
    return Health()


@alive.get("/health/live", summary="Is the process alive?")
async def check_liveness() -> Health:
    """The same; for liveness probes."""
    return Health()


@router.get("/health/ready", summary="What does it work with?", responses={503: failures(503)[503]})
async def check_readiness(service: AppStateDep) -> Readiness:
    """Names STATE_DIR, the feature store, the tracking server, Redis with its append-only file, the registry, the
    loaded models and the agent, each with mode and state; of what can go away also when it was last found well.
    """
    asked = await probed(service)
    things = await asyncio.to_thread(_things, service, asked)
    degraded = any(thing.state in ("degraded", "down") for thing in things.values())
    return Readiness(status="degraded" if degraded else "ready", things=things)


metrics_router = APIRouter(tags=["health"], dependencies=[Depends(checked), Depends(checked_with_bearer)])
"""`/metrics`, which needs the key, as X-API-Key or as a bearer token."""


@metrics_router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={200: METRICS_ANSWER, **failures(503)},
    response_class=Response,
)
async def read_metrics(service: AppStateDep) -> Response:
    """Text for Prometheus: names with the prefix `ml_workbench_`, and the process under its standard `process_`."""
    if service.predict_workers is not None:
        await service.predict_workers.ask()
    body = await service.queue_threads.run(_scrape, service)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


def _things(service: AppState, asked: Mapping[str, OutsideThing]) -> dict[str, OutsideThing]:
    workers = {} if service.predict_workers is None else {"predict_workers": predict_workers(service.predict_workers)}
    if service.replicas is not None:
        workers["replicas"] = replicas(service.replicas)
    cluster = {} if service.cluster is None else service.last_good.noted({"ray": service.cluster.check()})
    return {
        **service.last_good.noted({"feature_store": service.workbench.feature_store.check()}),
        **asked,
        "model_registry": model_registry(service.workbench, asked["model_registry"]),
        "state_files": state_files(),
        "live_models": live_models(service.workbench),
        "inference": inference(service.model_server, service.predict_workers),
        **workers,
        **cluster,
        "agent": _agent(service),
    }


def model_registry(workbench: Workbench, probed: OutsideThing) -> OutsideThing:
    """How its folder is, how many models there are, and which versions are set aside, with the reason."""
    if probed.state == "down":
        return probed
    num, aside = len(workbench.registry.model_ids()), workbench.registry.set_aside()
    if not aside:
        return probed.model_copy(update={"detail": f"{num} models; {probed.detail}"})
    named = "; ".join(f"{each.state}: {each.reason}" for each in aside[:MOST_NAMED])
    more = f"; and {len(aside) - MOST_NAMED} more" if len(aside) > MOST_NAMED else ""
    versions = "1 version is" if len(aside) == 1 else f"{len(aside)} versions are"
    told = f"{num} models; {versions} set aside: {named}{more}; {probed.detail}"
    return probed.model_copy(update={"state": "degraded" if probed.state == "ok" else probed.state, "detail": told})


def state_files() -> OutsideThing:
    """What of the service's own files this process could not read and has set aside."""
    aside = SET_ASIDE.named()
    if not aside:
        return OutsideThing(mode="folder", state="ok", detail="everything that was read made sense")
    named = "; ".join(f"{name_of(each.path)}: {each.reason}" for each in aside[:MOST_NAMED])
    more = f"; and {len(aside) - MOST_NAMED} more, which the log names" if len(aside) > MOST_NAMED else ""
    return OutsideThing(mode="folder", state="degraded", detail=f"{len(aside)} set aside: {named}{more}")


def live_models(workbench: Workbench) -> OutsideThing:
    """Live versions that are not proven to have skill, by their verdicts as they read today."""
    notes, cards = [], []
    live = [each for each in workbench.history.everything() if each.status == "live"]
    for deployment in live:
        try:
            cards.append((deployment, workbench.registry.card(deployment.model_id, deployment.version)))
        except PlatformError as error:
            notes.append(f"{deployment.model_id} {deployment.version}: {error.message}")
    leaks = False
    for (deployment, _), card in zip(
        cards, with_todays_verdicts(workbench.multiple_testing, [card for _, card in cards]), strict=True
    ):
        today = card.todays_verdict
        verdict = card.evaluation.verdict if today is None or today.verdict is None else today.verdict
        leaks |= verdict == "leak"
        found = [each for each in deployment.warnings_today(verdict) if each.startswith("verdict_")]
        notes += [f"{deployment.model_id} {deployment.version}: {', '.join(found)}"] if found else []
    detail = "; ".join(notes) or f"{len(live)} live, each with proven skill"
    return OutsideThing(mode="folder", state="degraded" if leaks else "ok", detail=detail)


def inference(server: ModelServer, workers: PredictProcesses | None = None) -> OutsideThing:
    """Which versions answer in another precision than their card says, or in one that nobody measured here."""
    reasons, warnings = server.precision_notes
    num_loaded = server.num_loaded
    for report in workers.reports if workers is not None else ():
        reasons, warnings = reasons | report.precision_reasons, warnings | report.precision_warnings
        num_loaded = max(num_loaded, report.num_loaded)
    notes = [f"{name}: {note}" for name, note in (reasons | warnings).items()]
    detail = "; ".join(notes) or f"{num_loaded} models loaded, each in its card's precision"
    return OutsideThing(mode="embedded", state="degraded" if reasons else "ok", detail=detail)


def predict_workers(workers: PredictProcesses) -> OutsideThing:
    """How many of them serve, and how busy they are."""
    reports = workers.reports
    notes = [f"{len(reports)} of {workers.num} serve"]
    waiting, unhanded = (sum(getattr(each, name) for each in reports) for name in ("num_waiting", "num_unhanded"))
    notes += [f"{waiting} questions wait"] if waiting else []
    notes += [f"{unhanded} answers wait for Redis on their way to the ledger"] if unhanded else []
    if by_file := [each.number for each in reports if each.follows == "history"]:
        notes.append(f"worker {', '.join(map(str, by_file))} reads the history file: Redis is away")
    is_whole = len(reports) == workers.num and not by_file
    return OutsideThing(mode="embedded", state="ok" if is_whole else "degraded", detail="; ".join(notes))


def replicas(reports: Callable[[], Sequence[ReplicaReport]]) -> OutsideThing:
    """Who of them reports, and what they say of themselves; how many there shall be is not this service's to know."""
    try:
        found = reports()
    except PlatformError as error:
        return OutsideThing(mode="remote", state="degraded", detail=f"not heard: {error.message}")
    notes = [f"{sum(each.is_ready for each in found)} of {len(found)} that report are ready"]
    notes += [f"{each.name} cannot load {'; '.join(each.cold)}" for each in found if each.cold]
    notes += [f"{each.name} has dropped {each.num_dropped} answers" for each in found if each.num_dropped]
    return OutsideThing(mode="remote", state="ok" if len(notes) == 1 else "degraded", detail="; ".join(notes))


def _agent(service: AppState) -> OutsideThing:
    wanted = () if service.agent_supervisor is None else service.agent_supervisor.wanted
    if not wanted:
        return OutsideThing(
            mode="off", state="disabled", detail="AGENT_AUTOSTART is off and no agent was started, or there is no Redis"
        )
    others = []
    for agent_id in wanted:
        try:
            agent = read_agent(agent_folder(service.workbench.state_dir, agent_id))
        except PlatformError as error:
            others.append(f"{agent_id}: {error.message}")
            continue
        if agent.status != "running":
            others.append(f"{agent.id} {agent.status}")
    if others:
        return OutsideThing(mode="embedded", state="degraded", detail=", ".join(others))
    return OutsideThing(mode="embedded", state="ok", detail="running" if len(wanted) == 1 else f"{len(wanted)} running")


def _scrape(service: AppState) -> bytes:
    metrics = service.metrics
    metrics.loaded_models.set(service.model_server.num_loaded)
    return metrics.render()
