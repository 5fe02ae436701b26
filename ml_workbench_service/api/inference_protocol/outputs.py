"""Records to tensors: every column of the record under its own name, `abstained`, and `record`, the whole as JSON."""

from collections.abc import Sequence

import numpy as np

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.inference_protocol.reading import NUMBERS, TEXTS, WINDOW
from ml_workbench_service.contracts.inference_protocol import TensorMetadata
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.tensors import Tensor
from ml_workbench_service.serving.record_columns import RecordColumn, record_columns

ABSTAINED, RECORD = "abstained", "record"

_bytes_of = PredictionRecord.__pydantic_serializer__.to_json


def output_names(card: ModelCard) -> list[str]:
    """Every output, in order."""
    return [*(each.name for each in _columns(card)), ABSTAINED, RECORD]


def check_wanted(card: ModelCard, wanted: Sequence[str]) -> None:
    """Raises DataValidationError for an output that there is not."""
    known = output_names(card)
    for name in wanted:
        if name not in known:
            near = close_names(name, known, n=1, cutoff=0.4)
            advice = f"did you mean {near[0]}?" if near else "GET /v2/models/{name} lists them"
            raise DataValidationError.at(f"outputs.{name[:64]}", f"{card.id} has no output of this name; {advice}")


def tensors_of(card: ModelCard, records: Sequence[PredictionRecord], wanted: Sequence[str]) -> list[Tensor]:
    """The wanted outputs in the order in which they were named; all where none was."""
    columns = {each.name: each for each in _columns(card)}
    return [_tensor(name, columns, records) for name in (wanted or output_names(card))]


def _tensor(name: str, columns: dict[str, RecordColumn], records: Sequence[PredictionRecord]) -> Tensor:
    num = len(records)
    if name == RECORD:
        return Tensor(name, "BYTES", (num,), [_bytes_of(each).decode() for each in records])
    if name == ABSTAINED:
        return Tensor(name, "BOOL", (num,), np.array([each.status == "abstain" for each in records]))
    column = columns[name]
    if column.kind in ("number", "positions"):
        values = column.numbers(records)
        return Tensor(name, "FP64", values.shape, values)
    return Tensor(name, "BYTES", (num,), column.texts(records))


def input_metadata(card: ModelCard) -> list[TensorMetadata]:
    """The window, and what must or may be said of each."""
    window = TensorMetadata(name=WINDOW, datatype="FP64", shape=[-1, -1, len(card.features)])
    texts = [TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in TEXTS]
    return [window, *texts, *(TensorMetadata(name=name, datatype="FP64", shape=[-1]) for name in NUMBERS)]


def output_metadata(card: ModelCard) -> list[TensorMetadata]:
    """Every output of a version."""
    return [
        TensorMetadata(name=each.name, datatype=each.datatype, shape=[-1, *each.shape[1:]])
        for each in tensors_of(card, [], [])
    ]


def _columns(card: ModelCard) -> tuple[RecordColumn, ...]:
    return record_columns(tuple(card.outputs))
