"""`/predictions` and `/models/{id}/monitoring`: what was predicted, what came true, how live versions fare."""

import asyncio
from dataclasses import asdict, replace
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.pages import Symbol, numbered
from ml_workbench_service.api.predictions import ModelIdPath
from ml_workbench_service.api.tables.answering import ROWS_OF_A_PAGE, AskedTable, streamed, table_of
from ml_workbench_service.contracts.contract import (
    NAME_PATTERN,
    VERSION_PATTERN,
    MarketDatetime,
    iso,
    to_ms,
)
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.outcomes import (
    MonitoringReport,
    OutcomeReport,
    PredictionList,
    RecordedPrediction,
)
from ml_workbench_service.contracts.tables import PredictionTable, TableFormat
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.prediction_ledger.reader import Wanted
from ml_workbench_service.learning.calibration.class_probabilities import VALUE_OF
from ml_workbench_service.workflows.monitor_model import monitor

router = APIRouter(tags=["predictions"])
PredictionIdPath = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="`prediction_id` of a record that was answered.")
]
VersionQuery = Annotated[str | None, Query(pattern=VERSION_PATTERN, description="Such as 1.0.0.")]
From = Annotated[MarketDatetime | None, Query(alias="from", description="First `as_of`, inclusive.")]
To = Annotated[MarketDatetime | None, Query(alias="to", description="Last `as_of`, inclusive.")]
SEED_OUTCOME = {"realised": -0.00031, "at": "2025-03-05T13:00:00Z"}


async def _wanted(
    symbol: Symbol,
    model_id: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    version: VersionQuery = None,
    from_: From = None,
    to: To = None,
    outcome: Annotated[
        Literal["known", "open"] | None, Query(description="Whether it is known what came true.")
    ] = None,
) -> Wanted:
    """Which rows of the ledger are asked for."""
    return Wanted(
        model_id=model_id,
        version=version,
        symbol=symbol,
        from_ms=None if from_ is None else to_ms(from_),
        to_ms=None if to is None else to_ms(to),
        is_known=None if outcome is None else outcome == "known",
    )


@router.get(
    "/predictions",
    summary="List predictions and their outcomes",
    response_class=Response,
    responses={**table_of(PredictionList), **failures(406, 503)},
)
async def list_predictions(
    service: AppStateDep, wanted: Annotated[Wanted, Depends(_wanted)], asked: AskedTable
) -> Response:
    """What live versions answered, as far as their deployment's `monitoring_level` samples it; newest first.

    As CSV, Arrow or Parquet nested keys are columns with dots between, such as `outcome.realised`.
    """
    before = asked.first or None  # this list's cursor names the row before which a page begins
    if asked.format is not TableFormat.JSON:
        await asyncio.to_thread(service.ledger.flush)
        table = PredictionTable(path=str(service.ledger.path), before=before, **asdict(wanted))
        return await streamed(service.tables, table, replace(asked, first=0), name="predictions")

    def read() -> PredictionList:
        service.ledger.flush()
        shown, following = service.ledger.page(wanted, limit=asked.limit or ROWS_OF_A_PAGE, before=before)
        return PredictionList(predictions=tuple(shown), next_cursor=numbered(following))

    found = await asyncio.to_thread(read)
    return Response(found.model_dump_json(), media_type=TableFormat.JSON.value)


@router.post(
    "/predictions/{prediction_id}/outcome",
    summary="Report what came true",
    responses=failures(404, 409, 413, 415, 503),
)
async def report_outcome(
    prediction_id: PredictionIdPath,
    body: Annotated[OutcomeReport, Body(examples=[SEED_OUTCOME])],
    service: AppStateDep,
) -> RecordedPrediction:
    """The value of the model's target over the prediction's horizon; it teaches the live intervals, once.

    An outcome is known once: the same value again changes nothing, another one is refused (409).
    """
    return await asyncio.to_thread(_report, service, prediction_id, body)


@router.get("/models/{model_id}/monitoring", summary="Watch a model live", responses=failures(404, 409, 503))
async def show_monitoring(
    model_id: ModelIdPath, service: AppStateDep, version: VersionQuery = None, from_: From = None, to: To = None
) -> MonitoringReport:
    """Error, direction, coverage, calibration and drift of each version that has predicted live, newest first."""

    def report() -> MonitoringReport:
        service.ledger.flush()
        return monitor(
            service.workbench,
            service.ledger,
            model_id,
            version=version,
            from_ms=None if from_ is None else to_ms(from_),
            to_ms=None if to is None else to_ms(to),
        )

    return await asyncio.to_thread(report)


def _report(service: AppState, prediction_id: str, body: OutcomeReport) -> RecordedPrediction:
    service.ledger.flush()
    row = service.ledger.get(prediction_id)
    if body.at < row.valid_until:
        raise DataValidationError.at(
            "body.at", f"the horizon ends at {iso(row.valid_until)}; an outcome is known from then on", code="too_early"
        )
    if body.at > service.workbench.clock.now():
        raise DataValidationError.at("body.at", "this moment is still to come; send when the outcome became known")
    _check_possible(row.target, body.realised)
    told, is_news = service.ledger.tell(prediction_id, body.realised, at_ms=to_ms(body.at))
    if is_news and row.sample != "historical":
        service.model_server.intervals.mature(row.model_id, row.version, row.symbol, to_ms(row.as_of), body.realised)
    return told


def _check_possible(target_name: str | None, realised: float) -> None:
    """Raises DataValidationError where no outcome of this target has that value."""
    if target_name is None:
        return  # the ledger knows why such a row has no outcome
    target = parse_target(target_name)
    if target.classes:
        numbers = [VALUE_OF.get(name, (float(place), ""))[0] for place, name in enumerate(target.classes)]
        if realised not in numbers:
            said = ", ".join(f"{number:g} {name}" for number, name in zip(numbers, target.classes, strict=True))
            raise DataValidationError.at("body.realised", f"send the number of a class of {target_name}: {said}")
    elif target.measure == "volatility" and realised < 0:
        raise DataValidationError.at("body.realised", "a volatility is zero or above")
    elif target.measure == "price_change" and realised <= -1:
        raise DataValidationError.at("body.realised", "a price change is above -1: a relative change, no percentage")
