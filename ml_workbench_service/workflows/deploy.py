"""Deployment: gates → compare-and-swap on the history → tell the target → the new version is live.

A target that refuses leaves the previous version live and this deployment `failed`. Serving reads the history at
each request, so the swap is the one appended line: a record's version and outputs always belong together.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from common_lib.exceptions import (
    BundleDamagedError,
    ConflictError,
    DataValidationError,
    GateFailedError,
    PlatformError,
)
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.deployment import (
    SAFETY_GATES,
    Deployment,
    DeployRequest,
    GateResult,
    verdict_warnings,
)
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.contracts.queue import DeploymentNotice
from ml_workbench_service.evaluation.live_verdict import live_rules_of, live_verdict
from ml_workbench_service.evaluation.todays_verdicts import todays_evaluations
from ml_workbench_service.integrations.prediction_ledger.reader import LEDGER_FILE, LedgerReader
from ml_workbench_service.integrations.strategy_engine import StrategyEngine
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model import load_model

SKILL_LIMIT = "the verdict `skill`, proven: recomputed, witnessed, declared by name, or by live evidence"
TYPES_WITHOUT_SKILL = frozenset({"anomaly_detection", "feature_engineering"})
NEXT_STEP = "train it again or restore its files"
NEXT_STEPS = {
    "leakage_certificate": "its figures knew the future: mend the data or features that the check names, and train "
    "again",
    "skill": "train on more data or better features, or send force if you know why it should serve all the same",
}
NEXT_STEPS_OF_VERDICT = {
    "unverified": "nothing proves that its columns did not know the future: let the service see them as they grow and "
    "train again, or send force and let it gather live evidence (`live_verdict`)",
    "implausible": "no honest model of this market is as good: look at its columns and at how its bars were read, or "
    'send accepted_verdict "implausible" if you know why',
    "skill": "nothing but their owner's word proves when these columns were known: name them in declared_columns if "
    "you take it, or let the service see them as they grow and train again",
}
"""Of the gate `skill`, where the verdict itself says what to do; of `skill` with `proof: declared`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sender:
    """Who asked: ids that go into the history."""

    deployment_id: str
    correlation_id: str
    idempotency_key: str | None = None
    body_digest: str | None = None


class DeployedAlready(ConflictError):
    """While this request waited for its turn, another one made the deployment that its id names."""


def deploy(
    workbench: Workbench, model_id: str, request: DeployRequest, sender: Sender, *, takes_back: str | None = None
) -> Deployment:
    """Makes a version the live one.

    Args:
        takes_back: the deployment that is rolled back by this one.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such version.
        GateFailedError: an enforced gate failed; `details.gates` lists them.
        StateDamagedError: the service has no record of its own of what the version was judged.
        ConflictError: `expected_current` is not live now, the version is archived, or another deployment is under way.
        DeployedAlready: the deployment of this id was made meanwhile.
        UpstreamError, UpstreamTimeoutError: the target refused; the previous version stays live.
        StorageFullError: the disk is full; the previous version stays live, and nothing stays pending.
    """
    _check_gates(request)
    card = _as_of_today(workbench, workbench.registry.recorded(_candidate(workbench, model_id, request.version)))
    gates = run_gates(workbench, card, request, enforces_skill=_enforces_skill(workbench, request, card))
    _pass(card.id, card.version, gates, partial(_next_step, card))
    with workbench.history.locked(model_id):
        if any(each.id == sender.deployment_id for each in workbench.history.of(model_id)):
            raise DeployedAlready("a request with this Idempotency-Key came first; ask for its deployment")
        _candidate(workbench, model_id, request.version)  # nobody archives or purges it from here on
        pending = _pending(workbench, card, request, sender, gates=gates)
        workbench.history.append(pending)
        live = _tell_and_go_live(workbench, pending, card, takes_back=takes_back)
    _announce(workbench, live)
    return live


def rollback(workbench: Workbench, deployment_id: str, sender: Sender) -> Deployment:
    """Takes a live deployment back: the version before it is deployed again, with the settings it had.

    Raises:
        DeploymentNotFoundError: no such deployment.
        ConflictError: it is not live, or nothing was live before it.
    """
    ended = workbench.history.get(deployment_id)
    if ended.status == "rolled_back":
        raise ConflictError("this deployment is rolled back already; GET /api/v1/deployments shows what is live")
    if ended.status != "live":
        raise ConflictError(f"this deployment is {ended.status}, not live; only a live one can be rolled back")
    earlier = [
        each
        for each in workbench.history.of(ended.model_id)
        if each.live_at and each.id != ended.id and each.version == ended.previous_version
    ]
    if not earlier:
        raise ConflictError(
            "nothing was live before this deployment; deploy another version instead, or undeploy the model"
        )
    request = DeployRequest(
        version=earlier[-1].version,
        deployment_target=earlier[-1].deployment_target,
        scaling_factor=earlier[-1].scaling_factor,
        monitoring_level=earlier[-1].monitoring_level,
        expected_current=ended.version,
        gates={"skill": False},  # it went live once, and going back must not wait for a training
        reason=f"rollback of {ended.id}",
    )
    return deploy(workbench, ended.model_id, request, sender, takes_back=ended.id)


def run_gates(
    workbench: Workbench, card: ModelCard, request: DeployRequest, *, enforces_skill: bool = False
) -> tuple[GateResult, ...]:
    """The digest verifies; the model answers a smoke prediction; nothing knew the future; the model has skill."""
    whole = _whole(workbench, card.id, card.version)
    answers = [_answers(workbench, card)] if whole.passed else []
    skilled = _skilled(card, request, _live_verdict(workbench, card), is_enforced=enforces_skill)
    return (whole, *answers, _certified(card), skilled)


def finish_interrupted(workbench: Workbench) -> None:
    """A deployment that a kill, or a disk that could not be written, left pending has failed; what was live before it
    still is. At start, and again and again: what stands in the way now (no room) may be gone the next time.
    """
    for found in workbench.history.everything():
        if found.status != "pending":
            continue
        try:
            with workbench.history.locked(found.model_id):
                now = workbench.history.get(found.id)
                if now.status == "pending":  # else it was under way, or another service has finished it
                    error = "the service stopped before the target had answered; deploy again"
                    workbench.history.append(_ended(now, "failed", utc_now(), error=error))
        except (PlatformError, OSError) as error:
            _log.warning("deployment %s stays pending for now: %s", found.id, error)


def _check_gates(request: DeployRequest) -> None:
    """Raises DataValidationError where a request switches a safety gate off."""
    off = sorted(name for name, is_on in (request.gates or {}).items() if not is_on and name in SAFETY_GATES)
    if off:
        raise DataValidationError.at(
            f"body.gates.{off[0]}", f"the gate {off[0]} is always enforced; leave it out or send true"
        )


def _candidate(workbench: Workbench, model_id: str, version: str) -> ModelCard:
    """The version's card; raises ConflictError where it is archived, GateFailedError where it was changed."""
    try:
        card = workbench.registry.card(model_id, version)
    except BundleDamagedError:
        _pass(model_id, version, (_whole(workbench, model_id, version),), lambda gate: NEXT_STEP)
        raise
    if card.status == "archived":
        raise ConflictError(
            f"version {version} of {model_id} is archived; restore it first, deploy another version or train a new one"
        )
    return card


def _enforces_skill(workbench: Workbench, request: DeployRequest, card: ModelCard) -> bool:
    """What the request says, else the setting; `force` lifts it, but for `implausible`, which wants to be named."""
    asked = (request.gates or {}).get("skill", workbench.enforces_skill)
    return asked and (not request.force or card.evaluation.verdict == "implausible")


def _pass(model_id: str, version: str, gates: tuple[GateResult, ...], next_step: Callable[[str], str]) -> None:
    """Raises GateFailedError where an enforced gate failed, with the next step of the first one."""
    failed = [gate for gate in gates if gate.enforced and not gate.passed]
    if not failed:
        return
    raise GateFailedError(
        f"version {version} of {model_id} did not pass: {', '.join(gate.gate for gate in failed)}; "
        + next_step(failed[0].gate),
        details={"gates": [gate.model_dump() for gate in gates]},
    )


def _next_step(card: ModelCard, gate: str) -> str:
    if gate == "skill" and card.evaluation.verdict in NEXT_STEPS_OF_VERDICT:
        return NEXT_STEPS_OF_VERDICT[card.evaluation.verdict]
    return NEXT_STEPS.get(gate, NEXT_STEP)


def _whole(workbench: Workbench, model_id: str, version: str) -> GateResult:
    limit = "every file as published"
    try:
        return _gate("digest", workbench.registry.verify(model_id, version), limit, passed=True)
    except PlatformError as error:
        return _gate("digest", error.message, limit, passed=False)


def _answers(workbench: Workbench, card: ModelCard) -> GateResult:
    limit = "a finite answer, whole and shortest window"
    try:
        load_model(workbench.registry.folder(card.id, card.version), card).smoke()
    except Exception as error:  # files as published, and still no model: whatever it says, it does not answer
        _log.warning("the smoke prediction of %s %s failed", card.id, card.version, exc_info=error)
        said = error.message if isinstance(error, PlatformError) else f"it cannot be loaded ({type(error).__name__})"
        return _gate("smoke_prediction", said, limit, passed=False)
    return _gate("smoke_prediction", "finite", limit, passed=True)


def _certified(card: ModelCard) -> GateResult:
    """Cards older than the certificate have none, and pass: nothing is known against them."""
    found = card.certificate
    value: str = "none: trained before certificates existed" if found is None else found.status
    if found is not None and found.status == "failed":
        value += ": " + "; ".join(each.detail for each in found.checks if each.status == "failed")
    passed = found is None or found.status != "failed"
    return _gate("leakage_certificate", value, "no check failed", passed=passed)


def _live_verdict(workbench: Workbench, card: ModelCard) -> LiveVerdict | None:
    """What live evidence says of a version whose columns nothing proves; None of any other."""
    if card.evaluation.verdict != "unverified":
        return None
    try:
        answers_of = partial(LedgerReader(workbench.state_dir / LEDGER_FILE).live_answers, card.id, card.version)
        rules = live_rules_of(workbench.registry.recipe(card.id, card.version))
        return live_verdict(card, answers_of, workbench.feature_store, rules)
    except PlatformError as error:  # whether it may go live must not depend on a store that is away
        _log.warning("no live verdict on %s %s just now: %s", card.id, card.version, error.message)
        return LiveVerdict(verdict="insufficient_data", reason=error.message)


def _as_of_today(workbench: Workbench, card: ModelCard) -> ModelCard:
    """The card with the verdict that is left once all hypotheses known today are counted."""
    (evaluation,) = todays_evaluations(workbench.multiple_testing, [card])
    return card.model_copy(update={"evaluation": evaluation})


def _skilled(card: ModelCard, request: DeployRequest, live: LiveVerdict | None, *, is_enforced: bool) -> GateResult:
    """Types that bet on nothing pass; a model on simulated prices has shown nothing, and does not."""
    verdict, value = card.evaluation.verdict, f"{card.evaluation.verdict}: {card.evaluation.reason}"
    passed = card.type in TYPES_WITHOUT_SKILL or verdict == "skill"
    if verdict == "skill" and card.evaluation.proof is not None:
        value = f"{verdict} ({card.evaluation.proof}): {card.evaluation.reason}"
        passed = card.evaluation.proof != "declared" or _declared(card) <= set(request.declared_columns)
    if verdict == "implausible":
        passed = request.accepted_verdict == verdict
    if live is not None:
        passed, value = live.verdict == "skill", f"{value}; live_verdict {live.verdict}: {live.reason}"
    return GateResult(gate="skill", value=value, limit=SKILL_LIMIT, passed=passed, enforced=is_enforced)


def _declared(card: ModelCard) -> set[str]:
    return set() if card.certificate is None else set(card.certificate.declared_columns)


def _gate(name: str, value: str, limit: str, *, passed: bool) -> GateResult:
    return GateResult(gate=name, value=value, limit=limit, passed=passed, enforced=True)


def _pending(
    workbench: Workbench, card: ModelCard, request: DeployRequest, sender: Sender, *, gates: tuple[GateResult, ...]
) -> Deployment:
    current = workbench.history.live_version(card.id)
    if request.expected_current is not None and request.expected_current != current:
        raise ConflictError(
            f"expected version {request.expected_current} to be live, but it is {current or 'none'}; look again, "
            "then decide",
            details={"current": current},
        )
    warnings = ["simulated_data"] if card.data_source == "simulated" else []
    warnings += _warnings_of_verdict(card, gates)
    if request.deployment_target == "strategy_engine" and workbench.strategy_engine is None:
        warnings.append("strategy_engine_not_configured")
    return Deployment(
        id=sender.deployment_id,
        model_id=card.id,
        version=card.version,
        deployment_target=request.deployment_target,
        status="pending",
        previous_version=current,
        gate_results=gates,
        warnings=tuple(warnings),
        digest=card.digest,
        data_source=card.data_source,
        scaling_factor=request.scaling_factor,
        monitoring_level=request.monitoring_level,
        reason=request.reason,
        created_at=utc_now(),
        idempotency_key=sender.idempotency_key,
        body_digest=sender.body_digest,
        correlation_id=sender.correlation_id,
    )


def _warnings_of_verdict(card: ModelCard, gates: tuple[GateResult, ...]) -> list[str]:
    """By the verdict's name, and that nothing proves skill; live evidence takes the place of `unverified`."""
    verdict = card.evaluation.verdict
    is_proven = all(gate.passed for gate in gates if gate.gate == "skill")
    named = [] if verdict == "unverified" and is_proven else list(verdict_warnings(verdict))
    declared = ["proof_declared"] if card.evaluation.proof == "declared" else []
    return [*named, *declared, *([] if is_proven else ["no_proven_skill"])]


def _tell_and_go_live(
    workbench: Workbench, pending: Deployment, card: ModelCard, *, takes_back: str | None
) -> Deployment:
    """Tells the strategy engine where it is the target; then the new line goes live, which ends the old one.

    The new line comes first: a reader may see a write half done, and must never find a model with nothing live.
    """
    before = workbench.history.live(card.id)
    engine = workbench.strategy_engine if pending.deployment_target == "strategy_engine" else None
    if engine is not None:
        try:
            engine.register(pending, card)
        except Exception as error:  # also what nobody foresaw: a pending line must not stay behind
            message = error.message if isinstance(error, PlatformError) else "the target could not be told"
            failed = _ended(pending, "failed", utc_now(), error=message)
            _end_pending(workbench, pending, failed)
            _announce(workbench, failed)
            raise
    now = utc_now()
    live = pending.model_copy(update={"status": "live", "live_at": now})
    ending = "rolled_back" if before is not None and before.id == takes_back else "superseded"
    try:
        workbench.history.append(live, *([_ended(before, ending, now)] if before else []))
    except (PlatformError, OSError):
        failed = _ended(pending, "failed", utc_now(), error="the disk took no line that makes it live; deploy again")
        _end_pending(workbench, pending, failed)
        if engine is not None:
            _tell_back(workbench, engine, pending, before, card)
        raise
    return live


def _end_pending(workbench: Workbench, pending: Deployment, failed: Deployment) -> None:
    """The line that ends a pending one; where the disk has no room for it, the pending one is taken back."""
    try:
        workbench.history.append(failed)
    except (PlatformError, OSError) as error:
        _log.warning("the end of deployment %s cannot be written, it is taken back: %s", pending.id, error)
        try:
            workbench.history.take_back(pending)
        except OSError as fault:  # `finish_interrupted` ends it as soon as the disk lets it
            _log.error("deployment %s stays pending until the disk can be written: %s", pending.id, fault)


def _tell_back(
    workbench: Workbench, engine: StrategyEngine, pending: Deployment, before: Deployment | None, card: ModelCard
) -> None:
    """The engine was told of a version that did not go live: what it had before is told again."""
    try:
        engine.unregister(pending, name=card.name)
        if before is not None and before.deployment_target == "strategy_engine":
            engine.register(before, workbench.registry.card(before.model_id, before.version), instead_of=pending.id)
    except PlatformError as error:
        _log.error(
            "the strategy engine holds version %s of %s, which is not live, and could not be told: %s; deploy again",
            pending.version, pending.model_id, error.message,
        )  # fmt: skip


def _ended(deployment: Deployment, status: str, at: datetime, *, error: str | None = None) -> Deployment:
    return deployment.model_copy(update={"status": status, "ended_at": at, "error": error})


def _announce(workbench: Workbench, deployment: Deployment) -> None:
    _log.info(
        "deployed" if deployment.status == "live" else "deployment failed",
        extra={"deployment_id": deployment.id, "model_id": deployment.model_id, "version": deployment.version},
    )
    if workbench.deployments is not None:
        workbench.deployments.announce(DeploymentNotice.of(deployment))
