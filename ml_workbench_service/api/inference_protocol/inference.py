"""What both transports do: from a request's tensors to an answer's, by the functions that answer `/predict`.

One window is answered as `/predict` answers it, several as `/predict/batch` does, but whole or not at all: the protocol
has no error of a single row.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from common_lib.exceptions import DataValidationError, ModelNotFoundError, PlatformError, VersionNotFoundError
from ml_workbench_service import __version__
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.inference_protocol.outputs import (
    check_wanted,
    input_metadata,
    output_metadata,
    tensors_of,
)
from ml_workbench_service.api.inference_protocol.reading import Questions, read_questions
from ml_workbench_service.api.predictions import answer_chosen, answer_many
from ml_workbench_service.contracts.clock import clock_ms
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.contracts.inference_protocol import ModelMetadata, ServerMetadata
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.runs.records import RunRow
from ml_workbench_service.contracts.tensors import Tensor
from ml_workbench_service.serving.model_server import Chosen

NAME = "ml-workbench"
PLATFORM = "onnx_onnxruntime"
VALUES_READ_HERE = 10_000
"""Of a request's tensors; more are looked through in a thread."""
EXTENSIONS = ["binary_tensor_data"]


@dataclass(frozen=True)
class Wanted:
    """A request of either transport, its tensors decoded."""

    model: str
    version: str | None
    tensors: Sequence[Tensor]
    parameters: Mapping[str, Any]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Inferred:
    """An answer before it is encoded."""

    model: str
    version: str
    outputs: list[Tensor]


async def infer(service: AppState, wanted: Wanted) -> Inferred:
    """The outputs of every window, or an error."""
    received_ms = clock_ms(service.workbench.clock)
    chosen = await chosen_model(service, wanted.model, wanted.version)
    card = chosen.model.card
    check_wanted(card, wanted.outputs)
    asked = await _read(chosen, wanted)
    if len(asked.requests) == 1:
        one = await answer_chosen(service, chosen, asked.requests[0], asked.enqueue, received_ms=received_ms)
        records = [one]
    else:
        answers = await answer_many(
            service, [(chosen, each) for each in asked.requests], asked.enqueue, received_ms=received_ms, is_whole=True
        )
        records = _all(answers)
    return Inferred(card.id, card.version, tensors_of(card, records, wanted.outputs))


async def _read(chosen: Chosen, wanted: Wanted) -> Questions:
    num_values = sum(prod(each.shape) for each in wanted.tensors)
    read = partial(read_questions, chosen.model, wanted.tensors, wanted.parameters, version=wanted.version)
    return read() if num_values <= VALUES_READ_HERE else await asyncio.to_thread(read)


def _all(answers: Sequence[RunRow | PlatformError]) -> list[PredictionRecord]:
    """Every record; where one that had to be in the queue is not, that error with the numbers of all such rows."""
    failed = {number: each for number, each in enumerate(answers) if isinstance(each, PlatformError)}
    if failed:
        first = next(iter(failed.values()))
        rows = ", ".join(map(str, failed)) if len(failed) <= 20 else f"{len(failed)} rows"
        raise type(first)(
            f"answered, but not in the queue: {rows} of {len(answers)}; {first.message}",
            details=first.details,
            retry_after_s=first.retry_after_s,
        )
    return [each.record for each in answers if isinstance(each, RunRow)]


async def chosen_model(service: AppState, model: str, version: str | None) -> Chosen:
    """The version asked for, else the live one, else the newest; loaded.

    Raises:
        DataValidationError: neither an id nor a version could look like this.
        ModelNotFoundError, VersionNotFoundError: there is none.
    """
    if not re.fullmatch(NAME_PATTERN, model) or ".." in model:
        raise DataValidationError.at("model_name", "a model's name is its id, such as lstm_price_predictor")
    if version is not None and not re.fullmatch(VERSION_PATTERN, version):
        raise DataValidationError.at("model_version", "a version has three numbers, such as 1.0.0")
    return await service.model_server.choose(model, version)


async def is_ready(service: AppState, model: str, version: str | None) -> bool:
    """Whether it answers; False where it does not exist."""
    try:
        await chosen_model(service, model, version)
    except (ModelNotFoundError, VersionNotFoundError):
        return False
    return True


def server_metadata() -> ServerMetadata:
    """Who answers."""
    return ServerMetadata(name=NAME, version=__version__, extensions=EXTENSIONS)


async def model_metadata(service: AppState, model: str, version: str | None) -> ModelMetadata:
    """What a version takes and says; the live one unless one is named."""
    chosen = await chosen_model(service, model, version)
    card = chosen.model.card
    versions = await asyncio.to_thread(service.workbench.registry.versions, model)
    return ModelMetadata(
        name=card.id,
        versions=versions,
        platform=PLATFORM,
        inputs=input_metadata(card),
        outputs=output_metadata(card),
    )
