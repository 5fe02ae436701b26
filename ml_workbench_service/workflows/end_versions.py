"""Ends of versions: archive, restore, purge. Nothing live is lost by one call, and no number is used twice.

    published → archived → purged            one version: two calls, a third word (`confirm`) where it was ever live
    set aside → purged                       one that cannot be served: in one call
    published or archived → purged           a whole model that is not deployed, with `confirm`

What is still used is not purged: a feature set that another version's recipe names; a version that a replay, an
experiment or a training under way reads, or an agent that runs for its model; one that is live, or whose closing
records are still owed. A parent version is not held by the versions trained after it: it is where they stood when they
were trained, and its tombstone keeps the digest.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from common_lib.exceptions import BundleDamagedError, ConflictError, DataValidationError, PlatformError
from common_lib.logging import correlation_id
from ml_workbench_service.agents.status import read_agents
from ml_workbench_service.contracts.feature_sets import is_reference, parse_reference
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.models import ModelCard, PurgedModel, Tombstone
from ml_workbench_service.resources import Workbench

MOST_NAMED = 5
"""Users that the sentence of a refusal names; `details.used_by` has all of them."""


def archive(workbench: Workbench, model_id: str, version: str) -> ModelCard:
    """Takes a version out of the candidates; idempotent. Raises ConflictError for the deployed one."""
    workbench.registry.card(model_id, version)  # 404 before anything is locked
    with workbench.history.locked(model_id):
        return workbench.registry.archive(model_id, version)


def restore(workbench: Workbench, model_id: str, version: str) -> ModelCard:
    """Makes an archived version a candidate again; idempotent."""
    workbench.registry.card(model_id, version)
    with workbench.history.locked(model_id):  # no purge under way removes what was just given back
        return workbench.registry.restore(model_id, version)


def purge_version(
    workbench: Workbench, model_id: str, version: str, *, confirm: str | None, unfinished: Iterable[JobSpec]
) -> Tombstone:
    """Removes an archived version's files for good; idempotent.

    Args:
        confirm: the model's id, where the version was ever live.
        unfinished: jobs that wait or run.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such version.
        ConflictError: it is neither archived nor set aside, or something uses it; `details.used_by` names what.
        DataValidationError: it was live once, and `confirm` is not the model's id.
        UnavailableError: the disk is full; nothing was purged.
    """
    registry = workbench.registry
    if not registry.is_purged(model_id, version):
        registry.check_known(model_id, version)
    with workbench.history.locked(model_id):
        if (left := registry.tombstones(model_id).get(version)) is not None:
            return left
        if _status(workbench, model_id, version) not in ("archived", "set aside"):
            raise ConflictError(
                f"version {version} of {model_id} is not archived, and only an archived one is purged; archive it "
                "first: the same call without `purge`"
            )
        if version in _ever_live(workbench, model_id):
            _check_confirmed(
                confirm, model_id, f"version {version} was live once, and its files cannot be brought back"
            )
        _check_unused(workbench, model_id, [version], unfinished)
        return _purged(workbench, model_id, [version])[version]


def purge_model(
    workbench: Workbench, model_id: str, *, confirm: str | None, unfinished: Iterable[JobSpec]
) -> PurgedModel:
    """Removes every version of a model that is not deployed, archived or not; idempotent. Raises as `purge_version`."""
    registry = workbench.registry
    if not registry.tombstones(model_id) and not registry.versions(model_id):
        registry.cards(model_id)  # 404
    _check_confirmed(confirm, model_id, "the model's files cannot be brought back")
    with workbench.history.locked(model_id):
        versions = registry.versions(model_id)
        live = workbench.history.live_version(model_id)
        if live is not None:
            raise ConflictError(
                f"version {live} of {model_id} is deployed; undeploy the model first: POST "
                f"/api/v1/models/{model_id}/undeploy"
            )
        if versions:
            _check_unused(workbench, model_id, versions, unfinished)
        return PurgedModel(model_id=model_id, purged=tuple(_purged(workbench, model_id, versions).values()))


def _purged(workbench: Workbench, model_id: str, versions: Sequence[str]) -> dict[str, Tombstone]:
    """The model's tombstones, these versions' among them."""
    workbench.registry.purge(
        model_id, versions, ever_live=_ever_live(workbench, model_id), correlation_id=correlation_id()
    )
    return dict(workbench.registry.tombstones(model_id))


def _status(workbench: Workbench, model_id: str, version: str) -> str:
    """Also of a version that is set aside, which nobody needs to archive: nothing serves it."""
    if workbench.history.live_version(model_id) == version:
        return "deployed"
    if workbench.registry.is_archived(model_id, version):
        return "archived"
    try:
        workbench.registry.card(model_id, version)
    except BundleDamagedError:
        return "set aside"
    return "experimental"


def _ever_live(workbench: Workbench, model_id: str) -> frozenset[str]:
    return frozenset(each.version for each in workbench.history.of(model_id) if each.live_at is not None)


def _check_confirmed(confirm: str | None, model_id: str, why: str) -> None:
    if confirm != model_id:
        raise DataValidationError.at(
            "query.confirm", f"{why}; if you mean it, send confirm={model_id}", code="not_confirmed"
        )


def _check_unused(workbench: Workbench, model_id: str, versions: Sequence[str], unfinished: Iterable[JobSpec]) -> None:
    """Raises ConflictError where something uses one of the versions, and names it."""
    used_by = [
        *_deployments(workbench, model_id, versions),
        *_jobs(workbench, model_id, versions, unfinished),
        *_agents(workbench, model_id, versions),
        *_models(workbench, model_id, versions),
    ]
    if not used_by:
        return
    named = "; ".join(each["why"] for each in used_by[:MOST_NAMED])
    more = f" and {len(used_by) - MOST_NAMED} more" if len(used_by) > MOST_NAMED else ""
    raise ConflictError(
        f"{model_id} {', '.join(versions[:MOST_NAMED])} is still used: {named}{more}; end or purge what uses it first",
        details={"used_by": used_by},
    )


def _use(kind: str, name: str, why: str) -> dict[str, str]:
    return {"kind": kind, "id": name, "why": why}


def _deployments(workbench: Workbench, model_id: str, versions: Sequence[str]) -> Iterator[dict[str, str]]:
    for each in workbench.history.of(model_id):
        if each.version in versions and each.status == "pending":
            yield _use("deployment", each.id, f"deployment {each.id} is pending")
        if each.version in versions and each.owes_closing:
            yield _use("deployment", each.id, f"agents were not told yet that deployment {each.id} has ended")


def _jobs(
    workbench: Workbench, model_id: str, versions: Sequence[str], unfinished: Iterable[JobSpec]
) -> Iterator[dict[str, str]]:
    is_whole = set(versions) >= set(workbench.registry.versions(model_id))
    for spec in unfinished:
        read = spec.plan.get("recorded", {})
        if spec.kind in (JobKind.REPLAY, JobKind.IMPORTANCE):
            read = {"model_id": spec.request.get("model_id"), "version": spec.plan.get("version")}
        reads = any(
            each.get("model_id") == model_id and each.get("version") in versions
            for each in (read, spec.plan.get("primary", {}))
        )
        trains = spec.plan.get("model_id") == model_id and (is_whole or spec.plan.get("version") in versions)
        names = any(_names(workbench, text, model_id, versions) for text in _references(spec.request))
        if reads or names:
            yield _use(spec.kind.value, spec.id, f"{spec.kind.value} {spec.id} reads it")
        elif trains:
            yield _use(spec.kind.value, spec.id, f"{spec.kind.value} {spec.id} makes a version of the model")


def _agents(workbench: Workbench, model_id: str, versions: Sequence[str]) -> Iterator[dict[str, str]]:
    """An agent is bound to a model, so that the last version alone is one that it would miss."""
    if not set(versions) >= set(workbench.registry.versions(model_id)):
        return
    for agent in read_agents(workbench.state_dir):
        if agent.model_id == model_id and (agent.wanted == "running" or agent.status == "running"):
            yield _use("agent", agent.id, f"agent {agent.id} runs for it")


def _models(workbench: Workbench, model_id: str, versions: Sequence[str]) -> Iterator[dict[str, str]]:
    """Versions whose recipe names one of these as a feature set."""
    for version in versions:
        expressions = _expressions(workbench, model_id, version)
        if not expressions:
            continue
        for other in workbench.registry.model_ids():
            for theirs in workbench.registry.versions(other) if other != model_id else ():
                recipe = _recipe(workbench, other, theirs)
                has_all = expressions.items() <= dict(recipe.get("expressions", {})).items()
                for text in _references(recipe.get("request", {})):
                    named, of = parse_reference(text)
                    if named == model_id and (of == version or (of is None and has_all)):
                        yield _use("model", f"{other} {theirs}", f"{other} {theirs} has it as its feature set")


def _names(workbench: Workbench, text: str, model_id: str, versions: Sequence[str]) -> bool:
    """Whether a reference of work under way is to one of these; one without a version is to the served one."""
    named, version = parse_reference(text)
    if named != model_id:
        return False
    try:
        return (version or workbench.registry.served_card(model_id).version) in versions
    except PlatformError:
        return True


def _references(plain: Any) -> Iterator[str]:
    """Names of feature sets, wherever in a request they stand."""
    if isinstance(plain, dict):
        plain = list(plain.values())
    if isinstance(plain, list):
        for each in plain:
            yield from _references(each)
    elif isinstance(plain, str) and is_reference(plain):
        try:
            parse_reference(plain)
        except ValueError:  # somebody's notes that begin with an @
            return
        yield plain


def _expressions(workbench: Workbench, model_id: str, version: str) -> dict[str, str]:
    """Of a feature set; none of any other version, or of one that cannot be read."""
    try:
        found = workbench.registry.card(model_id, version).findings.get("feature_set", {})
    except PlatformError:
        return {}
    return {str(each["name"]): str(each["expression"]) for each in found.get("expressions", ())}


def _recipe(workbench: Workbench, model_id: str, version: str) -> dict[str, Any]:
    try:
        return workbench.registry.recipe(model_id, version)
    except PlatformError:  # damaged, or gone since: it names nothing
        return {}
