"""The body of every failure, as the OpenAPI pages show it; `common_lib.exceptions` makes it."""

from typing import Any

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract


class ErrorBody(Contract):
    """One shape for every failure."""

    error_type: str = Field(examples=["ModelNotFoundError"])
    error_code: str = Field(examples=["MODEL_NOT_FOUND"])
    message: str = Field(examples=["no model of this id; none is trained yet: POST /api/v1/models/train"])
    details: dict[str, Any] = Field(default_factory=dict)
    correlation_id: str = Field(examples=["5f2c0d7e3c9b4a0e8d6f1a2b3c4d5e6f"])


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: which failures it answers with, each in the one shape.

    What may be away for a moment (503) writes something, and may find no room for it (507), and may need what a lean
    installation lacks (501).
    """
    of_storage = {501, 507} if 503 in statuses else set()
    return {
        status: {"model": ErrorBody, "description": _MEANING[status]}
        for status in sorted({401, 403, 422, 429, *statuses, *of_storage})
    }


_MEANING = {
    401: "No key, or a wrong one.",
    403: "The key lacks the scope that `details.needed_scope` names, or a page of another site sent it.",
    404: "There is no such thing.",
    406: "Not one of the formats that this table comes in; the message names them.",
    409: "The present state does not allow this.",
    413: "The body is over this operation's limit; the message says it.",
    415: "The body is not JSON.",
    422: "The request cannot be used as it is; `details.errors` says where and why.",
    429: "The key has used up its rate or its quota; `Retry-After` says when to try again.",
    500: "The service's own fault.",
    501: "This installation lacks a package; `details.extra` names the extra that brings it.",
    502: "Another server answered with an error.",
    503: "Not available at the moment; `Retry-After` says when to try again.",
    504: "Another server did not answer in time.",
    507: "The disk is full, and nothing was left half-done; or not enough memory: `details.change` has what fits.",
}
