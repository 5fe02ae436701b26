"""`/models/{id}/deploy`, `…/undeploy`, `/deployments`: make a version live, or none; the history; roll back."""

import asyncio
import uuid
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Response

from common_lib.exceptions import ConflictError, UpstreamError
from common_lib.logging import correlation_id
from ml_workbench_service.access.gate import check_scope
from ml_workbench_service.access.key_ring import Caller
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.api.app_state import AppState, AppStateDep, Idempotency, IdempotencyDep
from ml_workbench_service.api.middleware import CallerDep
from ml_workbench_service.api.pages import Cursor, Limit, page
from ml_workbench_service.api.predictions import ModelIdPath
from ml_workbench_service.api.submission import KEPT, check_same_body
from ml_workbench_service.contracts.contract import NAME_PATTERN, UtcDatetime, utc_now
from ml_workbench_service.contracts.deployment import (
    Deployment,
    DeploymentList,
    DeploymentStatus,
    DeploymentTarget,
    DeployRequest,
    Undeployment,
)
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.workflows.deploy import DeployedAlready, Sender, deploy, rollback
from ml_workbench_service.workflows.undeploy import undeploy

router = APIRouter(tags=["deployments"])
DeploymentIdPath = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$", description="`id` of a deployment.")]
KEPT_INSIDE = {"idempotency_key", "body_digest"}
"""Of the history's lines; no caller needs another's key."""
SEED_BODY = {
    "version": "1.0.0",
    "deployment_target": "strategy_engine",
    "scaling_factor": 1.0,
    "monitoring_level": "high",
}


@router.post(
    "/models/{model_id}/deploy",
    summary="Deploy a version",
    responses=failures(404, 409, 413, 415, 500, 502, 503, 504),
    response_model_exclude=KEPT_INSIDE,
)
async def deploy_model(
    model_id: ModelIdPath,
    body: Annotated[DeployRequest, Body(examples=[SEED_BODY])],
    service: AppStateDep,
    response: Response,
    key: IdempotencyDep,
    caller: CallerDep,
) -> Deployment:
    """Gates, compare-and-swap, the target's consent, and the version is live; a refusal leaves the old one live.

    What passes or eases a gate (`force`, `accepted_verdict`, `declared_columns`, a gate that is switched off) needs
    the scope `admin`.
    """
    _check_overrides(body, caller)
    before, deployment_id = await asyncio.to_thread(_before, service, model_id, key)
    if before is not None:
        response.headers["Idempotency-Replayed"] = "true"
        return _first_answer(before)
    sender = Sender(
        deployment_id=deployment_id,
        correlation_id=correlation_id(),
        idempotency_key=key.key if key else None,
        body_digest=key.body_digest if key else None,
    )
    try:
        deployment = await asyncio.to_thread(deploy, service.workbench, model_id, body, sender)
    except DeployedAlready:  # two requests with one key at the same time: the second waited for the first
        before, _ = await asyncio.to_thread(_before, service, model_id, key)
        if before is None:
            raise
        response.headers["Idempotency-Replayed"] = "true"
        return _first_answer(before)
    _wake_tracker(service)
    return deployment


@router.post(
    "/models/{model_id}/undeploy",
    summary="Undeploy a model",
    responses=failures(404, 409, 502, 503, 504),
    response_model_exclude={"deployment": KEPT_INSIDE},
)
async def undeploy_model(model_id: ModelIdPath, service: AppStateDep) -> Undeployment:
    """Nothing of the model is live any more: the engine is told, and agents go flat. Idempotent.

    An engine that refuses leaves the version live.
    """
    undeployed = await asyncio.to_thread(undeploy, service.workbench, model_id, full=service.full_mode)
    _wake_tracker(service)
    return undeployed


@router.get(
    "/deployments",
    summary="List the deployments",
    responses=failures(),
    response_model_exclude={"deployments": {"__all__": KEPT_INSIDE}},
)
async def list_deployments(
    service: AppStateDep,
    model_id: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    deployment_target: DeploymentTarget | None = None,
    status: DeploymentStatus | None = None,
    at: Annotated[UtcDatetime | None, Query(description="Only those that served at this moment.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> DeploymentList:
    """Newest first."""
    everything = await asyncio.to_thread(service.workbench.history.everything)

    def keep(each: Deployment) -> bool:
        return (
            (model_id is None or each.model_id == model_id)
            and (deployment_target is None or each.deployment_target == deployment_target)
            and (status is None or each.status == status)
            and (at is None or _served_at(each, at))
        )

    shown, following = page(everything, limit=limit, cursor=cursor, name=lambda each: each.id, keep=keep)
    return DeploymentList(deployments=shown, next_cursor=following)


@router.get(
    "/deployments/{deployment_id}",
    summary="Show a deployment",
    responses=failures(404),
    response_model_exclude=KEPT_INSIDE,
)
async def show_deployment(deployment_id: DeploymentIdPath, service: AppStateDep) -> Deployment:
    """One deployment as it stands now."""
    return await asyncio.to_thread(service.workbench.history.get, deployment_id)


@router.post(
    "/deployments/{deployment_id}/rollback",
    summary="Roll a deployment back",
    responses=failures(404, 409, 500, 502, 503, 504),
    response_model_exclude=KEPT_INSIDE,
)
async def roll_back_deployment(deployment_id: DeploymentIdPath, service: AppStateDep) -> Deployment:
    """Deploys what was live before this deployment, with the settings it had; the new deployment is the answer."""
    sender = Sender(deployment_id=_new_id(), correlation_id=correlation_id())
    deployment = await asyncio.to_thread(rollback, service.workbench, deployment_id, sender)
    _wake_tracker(service)
    return deployment


def _check_overrides(body: DeployRequest, caller: Caller) -> None:
    """Raises AuthorizationError where the request passes or eases a gate, and the key is no admin's."""
    given = {
        "force": body.force,
        "accepted_verdict": body.accepted_verdict is not None,
        "declared_columns": bool(body.declared_columns),
        "gates": not all((body.gates or {}).values()),
    }
    for name, is_given in given.items():
        if is_given:
            check_scope(caller, Scope.ADMIN, f"`{name}` in a deployment")


def _wake_tracker(service: AppState) -> None:
    if service.tracker is not None:
        service.tracker.poke()


def _new_id() -> str:
    return uuid.uuid4().hex[:24]


def _served_at(deployment: Deployment, at: UtcDatetime) -> bool:
    return (
        deployment.live_at is not None
        and deployment.live_at <= at
        and (deployment.ended_at is None or at < deployment.ended_at)
    )


def _before(service: AppState, model_id: str, key: Idempotency | None) -> tuple[Deployment | None, str]:
    """What this key made within the last day, and the id for what it is to make now."""
    if key is None:
        return None, _new_id()
    made = {each.id: each for each in service.workbench.history.of(model_id)}
    generation = 0
    while (identifier := key.identifier(generation)) in made:
        found = made[identifier]
        if utc_now() - found.created_at <= KEPT:
            check_same_body(found.body_digest, key)
            return _once_finished(service, found), identifier
        generation += 1
    return None, identifier


def _once_finished(service: AppState, deployment: Deployment) -> Deployment:
    """A pending deployment holds its model's lock until the target has answered."""
    if deployment.status == "pending":
        with service.workbench.history.locked(deployment.model_id):
            return service.workbench.history.get(deployment.id)
    return deployment


def _first_answer(deployment: Deployment) -> Deployment:
    """What the key's first request was answered with, whatever became of the deployment since."""
    if deployment.status == "pending":
        raise ConflictError("the first request with this key is still being answered; try again in a moment")
    if deployment.live_at is None:
        raise UpstreamError(deployment.error or "the target refused the deployment; send a new key to try again")
    return deployment.model_copy(update={"status": "live", "ended_at": None})
