"""Importance: how much each column of a published version carries, measured when somebody asks, as a job of its own.

A column that is dropped because of what the test part showed was chosen by the test part. So on it every column is
noted in the multiple-testing log before anything is looked at: a trial on that time, which every verdict there bears
from then on, this version's own of today among them. The same version's columns count once however often they are
asked for. The calibration part, which no verdict is about, costs nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common_lib.exceptions import SeriesNotFoundError
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.importance import ImportanceOrder, ImportanceReport
from ml_workbench_service.contracts.jobs import JobSpec, Report
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial, subject_of
from ml_workbench_service.evaluation.importance import judged_windows, permutation_importance
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model import ServedModel, load_model


def run(spec: JobSpec, *, checkpoint: Path, report: Report, workbench: Workbench) -> dict[str, Any]:
    """Measures; the job's result.

    Raises:
        DataValidationError: the version forecasts nothing, or the part is too short.
        ConflictError: the bars have changed since the version was judged.
        SeriesNotFoundError: the version kept no rows.
        JobCancelled: somebody asked for it.
    """
    order = ImportanceOrder.model_validate(spec.request)
    card = workbench.registry.card(order.model_id, order.version)
    model = load_model(workbench.registry.folder(order.model_id, order.version), card)
    path = workbench.registry.file(order.model_id, order.version, EVALUATION_FILE)
    if path is None:
        raise SeriesNotFoundError(f"version {order.version} of {order.model_id} kept no rows; train it again")
    report.say("fetching features")
    windows = judged_windows(model, workbench.feature_store, path, order.part)
    num_counted = _note(model, workbench) if order.part == "test" else 0
    report.say("permuting columns")
    columns, loss = permutation_importance(
        windows, num_repeats=order.num_repeats, seed=order.seed, progress=_by_column(report, order.num_repeats)
    )
    return ImportanceReport(
        model_id=order.model_id,
        version=order.version,
        part=order.part,
        loss="brier" if card.classes else "squared_error",
        mean_loss=loss,
        num_rows=len(windows.end_N),
        num_repeats=order.num_repeats,
        block_bars=windows.block,
        columns=columns,
        num_counted=num_counted,
    ).model_dump()


def _by_column(report: Report, num_repeats: int) -> Callable[[int, int], None]:
    """A step of the job's log a column; whether somebody cancels is looked for after every repetition."""

    def heard(step: int, total: int) -> None:
        if step % num_repeats:
            report.check()
        else:
            report(step // num_repeats, total // num_repeats)

    return heard


def _note(model: ServedModel, workbench: Workbench) -> int:
    """A trial on the test part for each column, before it is looked at."""
    card = model.card
    for name in card.features:
        read = PartRead(
            id=f"importance-{card.id}@{card.version}/{name}",
            subject=subject_of([] if model.target is None else [model.target], is_simulated=_is_simulated(model)),
            symbols=card.symbols,
            start_ms=model.borders_ms["test"],
            end_ms=model.last_available_at_ms + 1,
            at=utc_now(),
            model_id=card.id,
        )
        workbench.multiple_testing.record_trial(Trial(read=read))
    return len(card.features)


def _is_simulated(model: ServedModel) -> bool:
    return model.card.data_source == "simulated"
