"""Explained answers: `explain=true` of `/predict` and its batch; the record as ever, and what each feature added.

    request ─► version ─► question ─► scaled windows ─► table process: TreeSHAP ─► the record ─► both together

The trees are asked for their reasons before the record is made: where that fails nothing was published, counted or
kept, and the question may be asked again. The record itself comes from the graph, by the way that every record comes.
lightgbm takes 160 MiB, so it is loaded in the table process alone (docs/decisions/0064), by the first explanation.

Legend: N windows, T rows, F features, K outputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.api.app_state import AppState, PredictState
from ml_workbench_service.api.predictions import answer_question, batch_of, checked_question, chosen_for
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.contract import constructed
from ml_workbench_service.contracts.explanations import (
    ExplainedRecord,
    Explanation,
    ExplanationTask,
    OutputExplanation,
)
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictionRecord, PredictRequest
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.decoders.follow import NUM_CLASSES
from ml_workbench_service.learning.interfaces.family import Family
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.model_server import Chosen
from ml_workbench_service.serving.predict import Prepared, Question, prepare

MOST_VALUES = 4_000_000
"""Of the windows that go to the table process together: 16 MB."""


class _Asked(NamedTuple):
    """A question that may be asked, and its window as the trees read it."""

    chosen: Chosen
    question: Question
    prepared: Prepared


async def explain_one(service: PredictState, model_id: str, request: PredictRequest, enqueue: str) -> bytes:
    """An `ExplainedRecord` as it is sent; counted, monitored and left for the queue as any record is.

    Raises:
        DataValidationError: the model's family cannot say what its answers are made of.
        UnavailableError: the table process could not be asked.
    """
    received_ms = clock_ms(service.workbench.clock)
    chosen = await service.model_server.choose(model_id, request.wanted_version)
    check_explains(chosen.model.card)
    asked = await _asked(service, chosen, request, enqueue, received_ms=received_ms)
    (explanation,) = await _explanations(service, [asked])
    record = await answer_question(service, chosen, asked.question, enqueue)
    return _bytes_of(record, explanation)


async def explain_items(service: PredictState, model_id: str, items: Sequence[Any], enqueue: str) -> bytes:
    """A `BatchAnswer` of `ExplainedRecord`s as it is sent; an item that cannot be asked, explained or answered fails
    alone, but where no item's version can explain.

    Raises:
        DataValidationError, UnavailableError: as `explain_one`, of the whole.
    """
    received_ms = clock_ms(service.workbench.clock)
    answers: dict[int, bytes | PlatformError] = {}
    asked: dict[int, _Asked] = {}
    unable: list[DataValidationError] = []
    for number, each in enumerate(await chosen_for(service, model_id, items)):
        if isinstance(each, PlatformError):
            answers[number] = each
            continue
        try:
            check_explains(each[0].model.card)
        except DataValidationError as error:
            unable.append(error.kept())
            answers[number] = error.kept()
            continue
        try:
            asked[number] = await _asked(service, *each, enqueue, received_ms=received_ms)
        except PlatformError as error:
            answers[number] = error.kept()
    if unable and not asked:
        raise unable[0]
    explanations = await _explanations(service, list(asked.values()))
    for (number, one), explanation in zip(asked.items(), explanations, strict=True):
        try:
            record = await answer_question(service, one.chosen, one.question, enqueue)
            answers[number] = _bytes_of(record, explanation)
        except PlatformError as error:
            answers[number] = error.kept()
    return await batch_of([answers[number] for number in range(len(answers))])


def check_explains(card: ModelCard) -> None:
    """Raises DataValidationError, which names those that can, for a family that cannot explain single answers."""
    family = Family.known.get(card.family)
    if family is not None and family.explains_answers:
        return
    able = " and ".join(sorted(name for name, kind in Family.known.items() if kind.explains_answers))
    raise DataValidationError.at(
        "query.explain",
        f"{card.id} is of the family {card.family}, whose single answers cannot be taken apart by feature; {able} can. "
        f"POST /api/v1/models/{card.id}/versions/{card.version}/importance measures what its features are worth",
        code="cannot_explain",
    )


async def _asked(
    service: PredictState, chosen: Chosen, request: PredictRequest, enqueue: str, *, received_ms: int
) -> _Asked:
    question = await checked_question(service, chosen, request, enqueue, received_ms=received_ms)
    return _Asked(chosen, question, prepare(chosen.model, question))


async def _explanations(service: PredictState, asked: Sequence[_Asked]) -> list[Explanation | None]:
    """In order; None of a symbol that the model does not know."""
    assert isinstance(service, AppState), "predict workers pass such requests on"
    found: list[Explanation | None] = [None] * len(asked)
    groups: dict[tuple[str, int], list[int]] = {}
    for number, each in enumerate(asked):
        rows_TF = each.prepared.rows_TF
        if rows_TF is not None:
            groups.setdefault((each.chosen.model.card.digest, len(rows_TF)), []).append(number)
    for (digest, num_rows), numbers in groups.items():
        model = asked[numbers[0]].chosen.model
        card, num_features = model.card, len(model.card.features)
        folder = str(service.workbench.registry.folder(card.id, card.version))
        at_once = max(1, MOST_VALUES // (num_rows * num_features))
        for begin in range(0, len(numbers), at_once):
            some = numbers[begin : begin + at_once]
            task = ExplanationTask(
                folder=folder, digest=digest, num_windows=len(some), num_rows=num_rows, num_features=num_features
            )
            windows = b"".join(
                np.ascontiguousarray(asked[number].prepared.rows_TF, dtype="<f4").tobytes() for number in some
            )
            told = np.frombuffer(await service.tables.explain(task, windows), "<f8")
            num_read = len(_read_by(card))
            for number, told_KF in zip(some, told.reshape(len(some), -1, num_read + 1), strict=True):
                found[number] = explanation_of(model, asked[number].question.symbol, told_KF)
    return found


def explanation_of(model: ServedModel, symbol: str, told_KF: Floats) -> Explanation:
    """In words and the caller's units.

    Args:
        told_KF: of each output what each feature added, and last what it began from, in the network's units.
    """
    card, is_class = model.card, model.card.type == ModelType.CLASSIFICATION
    if not is_class:
        scale_K = np.asarray(model.scaler.symbols[symbol].label_scale_K, dtype=np.float64)
        told_KF = told_KF * np.repeat(scale_K, len(told_KF) // len(scale_K))[:, None]
    outputs = []
    names = _read_by(card)
    # of a follower its own two classes are explained, and not what it passes on of its primary
    for name, told_F in zip(card.outputs[: len(told_KF)], told_KF, strict=True):
        order = np.argsort(-np.abs(told_F[:-1]), kind="stable").tolist()
        outputs.append(
            OutputExplanation(
                output=name,
                base=float(told_F[-1]),
                contributions={names[place]: float(told_F[place]) for place in order},
                raw=float(told_F.sum()),
            )
        )
    return Explanation(unit="logit" if is_class else "target", outputs=tuple(outputs))


def _read_by(card: ModelCard) -> tuple[str, ...]:
    """What the trees read: the features; of a follower its own, and its primary's outputs."""
    if card.primary is None:
        return card.features
    return (*card.primary.reads, *card.outputs[NUM_CLASSES:])


def _bytes_of(record: PredictionRecord, explanation: Explanation | None) -> bytes:
    """Both together; an abstention states nothing, so there is nothing to explain."""
    stated = explanation if record.status == "ok" else None
    return constructed(ExplainedRecord, {**record.__dict__, "explanation": stated}).model_dump_json().encode()
