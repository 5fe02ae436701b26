"""Undeployment: tell the target → the live line ends → closing records → nothing of the model is live any more.

    undeployed            one line in the history; from it on predictions are a candidate's
    closing_as_of         a second: the moment at which the series end, later than any live answer
    closing_sent          a third, once a closing record of each series is in the queue

A closing record is an abstention for the reason `undeployed`: agents go flat by it. Where a kill, a full queue or one
that is away comes in between, `send_closing_records` goes on from the line that is there, under the same prediction
ids, so that no record counts twice. A model that is live again by then needs none.

A target that refuses leaves the version live, as at a deployment.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from datetime import timedelta

from common_lib.exceptions import BundleDamagedError, PlatformError, QueueFullError
from common_lib.logging import correlation_id
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms, utc_now
from ml_workbench_service.contracts.deployment import Deployment, Undeployment
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictionMetadata, PredictionRecord
from ml_workbench_service.contracts.queue import DeploymentNotice, FullMode, Outgoing
from ml_workbench_service.market.costs import ResolvedCosts
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model import costs_of_record

LOOK_BACK_BARS = 10
LOOK_BACK = timedelta(days=10)
"""How old the price may be that a series ends at; past it, agents end at the last one that they know."""

_log = logging.getLogger(__name__)


def undeploy(workbench: Workbench, model_id: str, *, full: FullMode) -> Undeployment:
    """Ends what is live of a model; idempotent.

    Args:
        full: what closing records do at a queue at its capacity, `drop_oldest` or `wait`.

    Raises:
        ModelNotFoundError: no such model.
        UpstreamError, UpstreamTimeoutError: the target refused; the version stays live.
        ConflictError: a deployment of this model is under way.
        UnavailableError: the disk is full; the version stays live.
    """
    warnings: list[str] = []
    if not workbench.history.of(model_id):
        workbench.registry.cards(model_id)  # 404 where there is none
        return Undeployment(model_id=model_id, deployment=None)
    with workbench.history.locked(model_id):
        live = workbench.history.live(model_id)
        if live is not None:
            if live.deployment_target == "strategy_engine" and not _told(workbench, live):
                warnings.append("strategy_engine_not_configured")
            ended = live.model_copy(update={"status": "undeployed", "ended_at": utc_now()})
            workbench.history.append(ended)
    if live is not None:
        _log.info("undeployed", extra={"deployment_id": live.id, "model_id": model_id, "version": live.version})
        if workbench.deployments is not None:
            workbench.deployments.announce(DeploymentNotice.of(ended))
    send_closing_records(workbench, full=full, model_id=model_id)
    found = [each for each in workbench.history.of(model_id) if each.status == "undeployed"]
    warnings += ["closing_records_pending"] if any(each.owes_closing for each in found) else []
    last = max(found, key=lambda each: each.ended_at or each.created_at, default=None)
    return Undeployment(model_id=model_id, deployment=last, warnings=tuple(warnings))


def send_closing_records(workbench: Workbench, *, full: FullMode, model_id: str | None = None) -> None:
    """Sends the closing records that are still owed, of one model or of all; what cannot be sent now stays owed."""
    if workbench.queue is None:
        return
    history = workbench.history
    for ended in history.everything() if model_id is None else history.of(model_id):
        if ended.owes_closing:
            try:
                _close(workbench, ended, full=full)
            except PlatformError as error:
                _log.warning("closing records of %s %s stay owed: %s", ended.model_id, ended.version, error.message)


def _told(workbench: Workbench, live: Deployment) -> bool:
    """Tells the strategy engine; False where there is none."""
    if workbench.strategy_engine is None:
        return False
    try:
        name = workbench.registry.card(live.model_id, live.version).name
    except PlatformError:  # its bundle is damaged, which is a reason to undeploy it
        name = live.model_id
    workbench.strategy_engine.unregister(live, name=name)
    return True


def _close(workbench: Workbench, ended: Deployment, *, full: FullMode) -> None:
    """Raises PlatformError where the card cannot be read, the disk is full, or the queue takes nothing now."""
    card = workbench.registry.card(ended.model_id, ended.version)
    costs, prices = _costs(workbench, card), _prices(workbench, card)
    with workbench.history.locked(ended.model_id):
        ended = workbench.history.get(ended.id)
        if not ended.owes_closing:
            return
        if workbench.history.live(ended.model_id) is None:
            if ended.closing_as_of is None:
                # Taken once the line above is there: a live answer that came later was not asked for later.
                ended = ended.model_copy(update={"closing_as_of": workbench.clock.now()})
                workbench.history.append(ended)
            _enqueue(workbench, closing_records(card, ended, costs=costs, prices=prices), full=full)
        workbench.history.append(ended.model_copy(update={"closing_sent": True}))


def closing_records(
    card: ModelCard, ended: Deployment, *, costs: Mapping[str, ResolvedCosts], prices: Mapping[str, float]
) -> list[PredictionRecord]:
    """One for each series that was live: a symbol on the card's timeframe."""
    as_of = ended.closing_as_of
    assert as_of is not None, "the moment is in the history before a record is made"
    records = []
    for symbol in card.symbols:
        name = hashlib.sha256(f"closing|{ended.id}|{symbol}|{card.timeframe}".encode()).hexdigest()[:32]
        paid = costs.get(symbol)
        metadata = PredictionMetadata(
            precision=card.precision,
            data_source=card.data_source,
            correlation_id=correlation_id() or ended.correlation_id,
            fill=card.fill,
            filling_rule="next_bar",
            deployment_id=ended.id,
            costs=paid and costs_of_record(paid, symbol, spread=None, as_of_ms=to_ms(as_of), calendar=card.calendar),
        )
        records.append(
            PredictionRecord(
                prediction_id=name, model_id=card.id, version=card.version, version_id=card.version, role="champion",
                symbol=symbol, timeframe=card.timeframe, target=card.target, as_of=as_of,
                valid_until=as_of + timedelta(milliseconds=TIMEFRAMES_MS[card.timeframe]), timestamp=as_of,
                price=prices.get(symbol), source="live", sample="live", status="abstain", prediction=None,
                direction="hold", confidence=None, outputs=dict.fromkeys(card.outputs), interval=None, novelty=None,
                abstain_reasons=("undeployed",), scaling_factor=ended.scaling_factor, metadata=metadata,
            )
        )  # fmt: skip
    return records


def _enqueue(workbench: Workbench, records: list[PredictionRecord], *, full: FullMode) -> None:
    """Sending again doubles nothing: the queue knows the prediction ids."""
    now = time.time()
    outgoing = [Outgoing(record, record.metadata.correlation_id, now) for record in records]
    _, left = workbench.required_queue().enqueue(outgoing, full=full)
    if left:
        raise QueueFullError(f"the prediction queue has no room for {len(left)} of them", retry_after_s=5)


def _costs(workbench: Workbench, card: ModelCard) -> dict[str, ResolvedCosts]:
    """What the version was judged with; without them agents take their own, or each pair's."""
    try:
        found = workbench.registry.recipe(card.id, card.version)["costs"]
        return {symbol: ResolvedCosts.model_validate(each) for symbol, each in found.items()}
    except (BundleDamagedError, ValueError, KeyError, AttributeError) as error:
        _log.warning("the costs of %s %s cannot be read: %s", card.id, card.version, error)
        return {}


def _prices(workbench: Workbench, card: ModelCard) -> dict[str, float]:
    """The newest close of each symbol, where the store has it; agents know the last price that they were told."""
    now_ms = clock_ms(workbench.clock)
    back_ms = max(LOOK_BACK_BARS * TIMEFRAMES_MS[card.timeframe], int(LOOK_BACK.total_seconds() * 1000))
    try:
        tables = workbench.feature_store.fetch(
            card.symbols, card.timeframe, start_ms=now_ms - back_ms, end_ms=now_ms, features=["close"], last=1,
            as_of_ms=now_ms,
        )  # fmt: skip
    except PlatformError as error:
        _log.warning("series of %s end at the last price that agents know: %s", card.id, error.message)
        return {}
    return {table.symbol: float(table.columns["close"][-1]) for table in tables if len(table.columns["close"])}
