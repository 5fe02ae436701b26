"""Own operations: what a predict worker or a replica answers by itself, and what of that takes the table process."""

from starlette.types import Scope

from ml_workbench_service.access.operations import API, operation_of
from ml_workbench_service.api.batches.door import is_arrow
from ml_workbench_service.api.predict_door import length_of
from ml_workbench_service.contracts.bodies import READ_HERE

OWN = frozenset({
    f"POST {API}/models/{{model_id}}/predict", f"POST {API}/models/{{model_id}}/predict/batch", "GET /health",
    "GET /health/live",
})  # fmt: skip
"""Operations that a worker answers by itself."""
OWN_OF_REPLICAS = OWN | {"GET /health/ready", "GET /metrics"}


def is_predict_workers(method: str, path: str, *, own: frozenset[str] = OWN) -> bool:
    """Whether a worker answers this by itself."""
    operation = operation_of(method, path)
    return operation is not None and operation.name in own


def needs_table_process(scope: Scope) -> bool:
    """Whether the table process is needed: it reads Arrow, large bodies and those that do not say how large, and it
    explains answers (a query may spell that in other letters)."""
    query: bytes = scope["query_string"]
    if b"explain" in query or b"%" in query:
        return True
    found = list(scope["headers"])
    num_bytes = length_of(found, most_bytes=READ_HERE)
    has_body = num_bytes is not None or any(name == b"transfer-encoding" for name, _ in found)
    return is_arrow(found) or (has_body and (num_bytes is None or num_bytes > READ_HERE))
