"""`/models/{id}/versions/{v}/series`, `…/desk-report` and `/compare`: what a version achieved, by row and in sum."""

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response

from common_lib.exceptions import DataValidationError, SeriesNotFoundError
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.middleware import CallerDep
from ml_workbench_service.api.models import VersionPath
from ml_workbench_service.api.predictions import ModelIdPath
from ml_workbench_service.api.submission import submit
from ml_workbench_service.api.tables.answering import AskedTable, answer_stored, table_of
from ml_workbench_service.contracts.comparison import ComparisonReport
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.contracts.desk_report import DeskReport, DeskTask
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.importance import ImportanceOrder, ImportanceRequest
from ml_workbench_service.contracts.jobs import JobAccepted, JobKind
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.series import EvaluatedPart, VersionSeries
from ml_workbench_service.contracts.tables import ComparedVersion, ComparisonTask, StoredTable
from ml_workbench_service.contracts.training import ModelType, parse_target
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE

FEWEST_COMPARED, MOST_COMPARED = 2, 8
"""Rows of so many versions lie in the table process at a time."""
router = APIRouter(tags=["models"])


@router.get(
    "/models/{model_id}/versions/{version}/series",
    summary="Read a version's rows",
    response_class=Response,
    responses={**table_of(VersionSeries), **failures(404, 406, 409, 503)},
)
async def read_version_series(
    model_id: ModelIdPath,
    version: VersionPath,
    service: AppStateDep,
    asked: AskedTable,
    part: Annotated[EvaluatedPart, Query(description="Which part of the version's data.")] = "test",
) -> Response:
    """What the version said at every bar of a part, what came true, and what its position there paid.

    The last `equity` of the test part is the net log return of the card's backtest.
    """
    card, path = await asyncio.to_thread(_kept, service, model_id, version)
    table = StoredTable(row="version", path=str(path), part=part)
    about: dict[str, Any] = {
        "model_id": model_id,
        "version": version,
        "part": part,
        "target": card.target,
        "warnings": [],
    }
    answer = await answer_stored(service.tables, table, asked, about=about, name=f"{model_id}-{version}-{part}")
    answer.headers["ETag"] = f'"{card.digest}"'
    return answer


@router.get(
    "/models/{model_id}/versions/{version}/desk-report",
    summary="Read a version's desk report",
    responses=failures(404, 409, 503),
)
async def read_desk_report(model_id: ModelIdPath, version: VersionPath, service: AppStateDep) -> DeskReport:
    """What a desk asks of the test part: rank correlation and its decay, fifths, turnover, drawdowns, months, slices.

    Made of the version's kept rows. Reading it is no further evaluation; a recipe that is changed for it is one.
    """
    card, path = await asyncio.to_thread(_kept, service, model_id, version)
    return await service.tables.report_desk(DeskTask(card=card, rows_path=str(path)))


@router.post(
    "/models/{model_id}/versions/{version}/importance",
    status_code=202,
    summary="Measure the columns' importance",
    responses=failures(404, 409, 413, 415, 503),
    response_model_exclude_unset=True,
)
async def measure_importance(
    model_id: ModelIdPath,
    version: VersionPath,
    body: Annotated[ImportanceRequest, Body(examples=[{"part": "calibration", "num_repeats": 10}])],
    service: AppStateDep,
    response: Response,
    caller: CallerDep,
) -> JobAccepted:
    """Permutes each column over the whole lookback, in blocks of time, and measures what the answers lose, as a job.

    On the test part each column is noted as a hypothesis first, which every verdict there bears from then on.
    """
    await asyncio.to_thread(_kept, service, model_id, version)
    order = ImportanceOrder(model_id=model_id, version=version, **body.model_dump())
    return await submit(JobKind.IMPORTANCE, order, service, response, caller.client, plan={"version": version})


@router.get(
    "/compare",
    summary="Compare versions",
    responses=failures(404, 409, 503),
)
async def compare_versions(
    versions: Annotated[
        str,
        Query(
            max_length=1024, description="`<model_id>@<version>`, 2 to 8 of them with commas between.",
            examples=["small@1.0.0,small@1.1.0"],
        ),
    ],
    service: AppStateDep,
) -> ComparisonReport:  # fmt: skip
    """The versions' figures on the rows of their test parts that all of them answered, and each pair's difference."""
    named = _named(versions)
    kept = [await asyncio.to_thread(_kept, service, *each) for each in named]
    _check_common([card for card, _ in kept])
    return await service.tables.compare(ComparisonTask(versions=tuple(_compared(*each) for each in kept)))


def _kept(service: AppState, model_id: str, version: str) -> tuple[ModelCard, Path]:
    """The card, and the file of its rows.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such version.
        SeriesNotFoundError: it kept no rows.
    """
    card = service.workbench.registry.card(model_id, version)
    path = service.workbench.registry.file(model_id, version, EVALUATION_FILE)
    if path is not None:
        return card, path
    if card.type == ModelType.FEATURE_ENGINEERING.value:
        raise SeriesNotFoundError(
            f"version {version} of {model_id} is a feature set, which predicts nothing and so has no rows; read those "
            "of a model that is trained on it"
        )
    raise SeriesNotFoundError(
        f"version {version} of {model_id} was published before versions kept their rows; train it again to have them"
    )


def _named(text: str) -> list[tuple[str, str]]:
    """The versions of a query; raises DataValidationError."""
    names = [each.strip() for each in text.split(",")]
    parts = [each.partition("@") for each in names]
    for model_id, _, version in parts:
        if not re.fullmatch(NAME_PATTERN, model_id) or not re.fullmatch(VERSION_PATTERN, version):
            raise DataValidationError.at(
                "query.versions", "write versions as model@1.0.0 with commas between, such as a@1.0.0,b@1.2.0"
            )
    if not FEWEST_COMPARED <= len(names) <= MOST_COMPARED or len(set(names)) < len(names):
        raise DataValidationError.at(
            "query.versions", f"name {FEWEST_COMPARED} to {MOST_COMPARED} versions, each once, with commas between"
        )
    return [(model_id, version) for model_id, _, version in parts]


def _check_common(cards: list[ModelCard]) -> None:
    """Raises DataValidationError where nothing could be common to all, saying what."""
    timeframes = sorted({card.timeframe for card in cards})
    if len(timeframes) > 1:
        raise _nothing_common(f"their timeframes are {' and '.join(timeframes)}, so that no bar is the same")
    if not set.intersection(*(set(card.symbols) for card in cards)):
        said = " · ".join(f"{card.id}@{card.version}: {', '.join(card.symbols)}" for card in cards)
        raise _nothing_common(f"they know no symbol in common ({said})")
    if not set.intersection(*(_stakes(card) for card in cards)):
        said = " · ".join(f"{card.id}@{card.version}: {card.target or card.type}" for card in cards)
        raise _nothing_common(f"neither a target nor positions are common to all of them ({said})")


def _stakes(card: ModelCard) -> set[str]:
    """What of a version can be held against another's: its target, and the money of its positions."""
    found = set() if card.target is None else {card.target}
    return found | ({"money"} if card.evaluation.backtest is not None else set())


def _nothing_common(why: str) -> DataValidationError:
    return DataValidationError.at(
        "query.versions",
        f"these versions cannot be compared: {why}; compare versions of one timeframe, symbol and target",
        code="nothing_in_common",
    )


def _compared(card: ModelCard, path: Path) -> ComparedVersion:
    target = None if card.target is None else parse_target(card.target, card.timeframe)
    return ComparedVersion(
        model_id=card.id,
        version=card.version,
        path=str(path),
        target=card.target,
        horizon=1 if target is None else target.horizon + (card.label_start == "fill"),
        timeframe=card.timeframe,
        fill=card.fill,
        verdict=card.evaluation.verdict,
    )
