"""`/models`: list, cards, versions, training; archiving, restoring and purging."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from common_lib.exceptions import (
    BundleDamagedError,
    DataValidationError,
    JobNotFoundError,
    ModelNotFoundError,
    VersionNotFoundError,
)
from common_lib.storage import check_there
from ml_workbench_service.access.gate import check_scope
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.api.app_state import AppState, AppStateDep, IdempotencyDep
from ml_workbench_service.api.middleware import CallerDep
from ml_workbench_service.api.pages import Cursor, Limit, Symbol, page
from ml_workbench_service.api.predictions import ModelIdPath
from ml_workbench_service.api.submission import accepted_once, submit_once
from ml_workbench_service.contracts.contract import VERSION_PATTERN
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.evaluation import TodaysVerdict
from ml_workbench_service.contracts.jobs import JobAccepted, JobKind, JobSpec
from ml_workbench_service.contracts.models import (
    LiveIntervalReport,
    ModelCard,
    ModelList,
    ModelOrder,
    ModelStatus,
    ModelSummary,
    PurgedModel,
    Tombstone,
    VersionList,
)
from ml_workbench_service.contracts.training import ModelType, TrainRequest
from ml_workbench_service.evaluation.todays_verdicts import stated_today, with_todays_verdicts
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.learning.bundle.checked_bundles import set_aside
from ml_workbench_service.learning.bundle.listing import CardFacts
from ml_workbench_service.workflows.end_versions import archive, purge_model, purge_version, restore
from ml_workbench_service.workflows.plan_training import TrainingPlan, check_length, plan_training

router = APIRouter(prefix="/models", tags=["models"])
Purge = Annotated[bool, Query(description="Remove the files of an archived version for good.")]
Confirm = Annotated[
    str | None, Query(max_length=64, description="The model's id: that its files cannot be brought back is meant so.")
]
MOST_SET_ASIDE = 200
VersionPath = Annotated[str, Path(pattern=VERSION_PATTERN, description="Such as 1.0.0.")]


@router.get("", summary="List the models", responses=failures(), response_model=ModelList)
async def list_models(
    service: AppStateDep,
    symbol: Symbol,
    model_type: ModelType | None = None,
    status: ModelStatus | None = None,
    order: Annotated[ModelOrder, Query(description="By id, or by when the version was made.")] = "id",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Each model once, by its live version, else its newest that is not archived; in the order of their ids, or newest
    first.

    `status=archived` lists the archived versions instead, each by itself.
    """
    wanted = _Wanted(model_type, status, symbol, service.workbench.registry)
    lines, following = await asyncio.to_thread(_page_of_models, service, wanted, order, limit, cursor)
    aside = await asyncio.to_thread(service.workbench.registry.set_aside)
    rest = ModelList(models=(), set_aside=aside[:MOST_SET_ASIDE], next_cursor=following).model_dump_json().encode()
    return Response(_BEGIN + b",".join(lines) + rest.removeprefix(_BEGIN), media_type="application/json")


@router.get("/{model_id}", summary="Show a model", responses=failures(404, 409))
async def show_model(model_id: ModelIdPath, service: AppStateDep, response: Response) -> ModelCard:
    """The full card of the live version, else of the newest."""
    card = await asyncio.to_thread(lambda: _as_of_now(service.workbench.registry.served_card(model_id), service))
    response.headers["ETag"] = f'"{card.digest}"'
    return card


@router.get("/{model_id}/versions", summary="List a model's versions", responses=failures(404))
async def list_versions(
    model_id: ModelIdPath, service: AppStateDep, limit: Limit = 50, cursor: Cursor = None
) -> VersionList:
    """Full cards, newest first, archived ones too; what is left of purged ones; and which cannot be served, and why."""
    registry = service.workbench.registry
    cards, faults = await asyncio.to_thread(registry.sound_and_set_aside, model_id)
    purged = await asyncio.to_thread(registry.tombstones, model_id)
    shown, following = page(cards, limit=limit, cursor=cursor, name=lambda card: card.version)
    versions = await asyncio.to_thread(_judged_today, shown, service)
    return VersionList(
        versions=tuple(versions),
        purged=tuple(purged.values()),
        set_aside=tuple(set_aside(model_id, version, fault) for version, fault in faults.items()),
        next_cursor=following,
    )


@router.get(
    "/{model_id}/versions/{version}",
    summary="Show a version",
    responses={**failures(404, 409), 304: {"description": "Unchanged."}},
    response_model=ModelCard,
)
async def show_version(
    model_id: ModelIdPath,
    version: VersionPath,
    service: AppStateDep,
    response: Response,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Any:
    """The full card; its ETag is the version's digest. 304 while nothing but the digest could have changed."""
    card, never_served = await asyncio.to_thread(_card_and_past, service, model_id, version)
    etag = f'"{card.digest}"'
    offered = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    if etag in offered and card.status == "experimental" and never_served and _reads_as_published(card):
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return card


@router.delete(
    "/{model_id}/versions/{version}", summary="Archive or purge a version", responses=failures(404, 409, 503)
)
async def archive_version(
    model_id: ModelIdPath, version: VersionPath, service: AppStateDep, caller: CallerDep, purge: Purge = False,
    confirm: Confirm = None,
) -> ModelCard | Tombstone:  # fmt: skip
    """Takes a version out of the candidates; its files stay. The deployed one is refused.

    With `purge`, an archived version's files are removed for good, and its tombstone is the answer; one that something
    still uses is refused. It needs the scope `admin`.
    """
    if purge:
        check_scope(caller, Scope.ADMIN, "`purge=true`")
    if not purge:
        if confirm is not None:
            raise DataValidationError.at(
                "query.confirm", "archiving needs no `confirm`; leave it out, or send purge=true"
            )
        return await asyncio.to_thread(lambda: _as_of_now(archive(service.workbench, model_id, version), service))
    async with service.planning:  # nobody begins to use it meanwhile
        left = await asyncio.to_thread(
            lambda: purge_version(
                service.workbench, model_id, version, confirm=confirm, unfinished=_unfinished(service)
            )
        )
    await _forget_purged(service)
    return left


@router.post(
    "/{model_id}/versions/{version}/restore", summary="Restore an archived version", responses=failures(404, 409, 503)
)
async def restore_version(model_id: ModelIdPath, version: VersionPath, service: AppStateDep) -> ModelCard:
    """Makes an archived version a candidate again. Idempotent; a purged one is gone."""
    return await asyncio.to_thread(lambda: _as_of_now(restore(service.workbench, model_id, version), service))


@router.delete("/{model_id}", summary="Purge a model", responses=failures(404, 409, 503))
async def delete_model(model_id: ModelIdPath, service: AppStateDep, confirm: Confirm = None) -> PurgedModel:
    """Removes every version of a model that is not deployed, for good. Its histories stay, and its version numbers are
    never used again. Idempotent; `confirm` is the model's id."""
    async with service.planning:
        left = await asyncio.to_thread(
            lambda: purge_model(service.workbench, model_id, confirm=confirm, unfinished=_unfinished(service))
        )
    await _forget_purged(service)
    return left


async def _forget_purged(service: AppState) -> None:
    """What is left of purged versions outside the registry: in memory, in the live intervals, in MLflow."""
    service.model_server.forget_purged()
    await asyncio.to_thread(service.model_server.remove_leftovers)
    if service.tracker is not None:
        service.tracker.poke()


@router.post(
    "/train",
    status_code=202,
    summary="Train a model",
    responses=failures(409, 413, 415, 503, 507),
    response_model_exclude_unset=True,
)
async def train_model(
    body: TrainRequest, service: AppStateDep, response: Response, key: IdempotencyDep, caller: CallerDep
) -> JobAccepted:
    """Accepts a training and answers at once; the job at `Location` tells how it goes."""
    spec = await submit_once(JobKind.TRAIN, partial(_plan, body, service), service, response, caller.client, key)
    told = {name: spec.plan[name] for name in ("model_id", "version", "estimate")}
    return accepted_once(spec, response, location=f"/api/v1/jobs/{spec.id}", **told)


def summary(card: ModelCard, live: Deployment | None = None) -> ModelSummary:
    """A card's line in the list; of the live version with what it is live with."""
    evaluation, today = card.evaluation, card.todays_verdict
    adds = None if evaluation.adds_over_linear is None else evaluation.adds_over_linear.answer
    derived = {"verdict", "published_verdict", "adjusted_p_value", "proof", "adds_over_linear", "warnings"}
    verdict, proof, p_value = evaluation.verdict, evaluation.proof, None
    if today is not None and today.verdict is not None:
        verdict, proof, p_value = today.verdict, today.proof, today.adjusted_p_value
        adds = today.adds_over_linear
    is_live = live is not None and live.version == card.version
    return ModelSummary(
        **{name: getattr(card, name) for name in ModelSummary.model_fields.keys() - derived},
        verdict=verdict,
        published_verdict=evaluation.verdict,
        adjusted_p_value=p_value,
        proof=proof,
        adds_over_linear=adds,
        warnings=live.warnings_today(verdict) if is_live and live is not None else (),
    )


_Place = tuple[str, str | None]
"""A model, and the version where each is listed by itself."""


@dataclass
class _Wanted:
    """Which models are listed; each is looked at as cheaply as can be, since there may be many."""

    model_type: ModelType | None
    status: ModelStatus | None
    symbol: str | None
    registry: FolderModelRegistry
    cards: dict[_Place, tuple[ModelCard, ModelStatus]] = field(default_factory=dict)  # of those that are

    def keep(self, place: _Place) -> bool:
        """A model of which no version can be served is passed over: the list names what is set aside."""
        model_id, version = place
        try:
            if version is None:
                seen = self.registry.look(model_id)
                facts = self.registry.served_facts(model_id, seen)
                if facts is None or not self._fits(*facts):
                    return False
                card, status = self.registry.served(model_id, seen)
            elif self.registry.is_archived(model_id, version):
                card, status = self.registry.card(model_id, version), "archived"
            else:
                return False
        except (BundleDamagedError, ModelNotFoundError, VersionNotFoundError):  # set aside; or gone by now
            return False
        self.cards[place] = card, status
        return self._fits(card, status)

    def _fits(self, each: ModelCard | CardFacts, status: ModelStatus) -> bool:
        return (
            (self.model_type is None or each.type == self.model_type.value)
            and (status != "archived" if self.status is None else status == self.status)
            and (self.symbol is None or self.symbol in each.symbols)
        )


def _page_of_models(
    service: AppState, wanted: _Wanted, order: ModelOrder, limit: int, cursor: str | None
) -> tuple[list[bytes], str | None]:
    check_there(wanted.registry.root)  # else the list would be empty
    history = service.workbench.history
    shown, following = page(
        _places(wanted, order, history), limit=limit, cursor=cursor, name=lambda place: " ".join(filter(None, place)),
        keep=wanted.keep,
    )  # fmt: skip
    found = [wanted.cards[place] for place in shown]
    today = stated_today(service.workbench.multiple_testing, [card for card, _ in found])
    lines = [
        _line(card, status, verdict, history.live(card.id))
        for (card, status), verdict in zip(found, today, strict=True)
    ]
    return lines, following


_LINES: OrderedDict[str, tuple[tuple[object, ...], bytes]] = OrderedDict()
"""Lines by digest, with what else they say: the same verdict, status and deployment make the same line."""
MOST_LINES = 1_000
_BEGIN = b'{"models":['


def _line(card: ModelCard, status: ModelStatus, today: TodaysVerdict | None, live: Deployment | None) -> bytes:
    """`summary` in JSON, of the card as it was published and what has become of it."""
    says = (card.evaluation, today, status, live)
    kept = _LINES.get(card.digest)
    if kept is not None and all(one is other for one, other in zip(kept[0], says, strict=True)):
        return kept[1]
    as_of_now = card.model_copy(update={"status": status, "todays_verdict": today})
    line = summary(as_of_now, live).model_dump_json().encode()
    _LINES[card.digest] = says, line
    while len(_LINES) > MOST_LINES:
        with suppress(KeyError):  # another thread made room meanwhile
            _LINES.popitem(last=False)
    return line


def _places(wanted: _Wanted, order: ModelOrder, history: DeploymentHistory) -> list[_Place]:
    """Everything that may be listed, in its order."""
    registry = wanted.registry
    names = tuple(history.names()) if wanted.status == "deployed" else registry.listing.names()
    if order == "newest":
        made = {each: found[0].created_at if (found := registry.served_facts(each)) else "" for each in names}
        names = tuple(sorted(names, key=lambda each: (made[each], each), reverse=True))
    if wanted.status == "archived":
        return [(model_id, version) for model_id in names for version in registry.versions(model_id)]
    return [(model_id, None) for model_id in names]


def _unfinished(service: AppState) -> list[JobSpec]:
    return [folder.spec for folder in service.store.unfinished()]


def _card_and_past(service: AppState, model_id: str, version: str) -> tuple[ModelCard, bool]:
    """The card, and whether the version never was live: then its status cannot have changed and changed back."""
    card = service.workbench.registry.card(model_id, version)
    past = service.workbench.history.of(model_id)
    return _as_of_now(card, service), not any(each.version == version and each.live_at for each in past)


def _as_of_now(card: ModelCard, service: AppState) -> ModelCard:
    """The card with what is not in the bundle: today's verdict, its run, and what became of its live intervals."""
    (card,) = _judged_today([card], service)
    found = service.model_server.intervals.coverage(card.id, card.version)
    live = None if found is None else LiveIntervalReport.model_validate(asdict(found))
    return _with_run(card, service.store).model_copy(update={"live_intervals": live})


def _judged_today(cards: Sequence[ModelCard], service: AppState) -> list[ModelCard]:
    return with_todays_verdicts(service.workbench.multiple_testing, cards)


def _reads_as_published(card: ModelCard) -> bool:
    """Whether today's p-value is the published one: who offers the digest may have seen another."""
    today, found = card.todays_verdict, card.evaluation.significance
    return today is None or (found is not None and today.adjusted_p_value == found.adjusted_p_value)


def _with_run(card: ModelCard, store: JobStore) -> ModelCard:
    """The card with its MLflow run, which the tracker noted after the bundle was published and so never changed."""
    try:
        run_id = store.folder(card.lineage.job_id).tracking().run_id
    except JobNotFoundError:  # deleted, trained elsewhere, or its folder is gone
        deleted = store.deleted(card.lineage.job_id)
        run_id = None if deleted is None else deleted.run_id
        if run_id is None:
            return card
    return card.model_copy(update={"lineage": card.lineage.model_copy(update={"run_id": run_id})})


def _plan(body: TrainRequest, service: AppState) -> TrainingPlan:
    plan = plan_training(
        body,
        service.workbench,
        unfinished=_unfinished(service),
        max_memory_gb=service.max_memory_gb,
    )
    check_length(plan.estimate.duration_s, max_hours=service.max_job_hours)
    return plan
