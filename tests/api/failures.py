"""The one body of every failure, as a check."""

from typing import Any

import httpx

KEYS = {"error_type", "error_code", "message", "details", "correlation_id"}


def assert_failure(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """That the response is a failure of this status and code in the one shape; its body."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["Content-Type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert_body(body, code)
    assert body["correlation_id"] == response.headers["X-Correlation-ID"]
    return body


def assert_body(body: dict[str, Any], code: str) -> None:
    """That a body is the one body, with this code."""
    assert set(body) == KEYS
    assert body["error_code"] == code, body
    assert body["error_type"].isidentifier()
    assert len(body["message"]) > 10
    assert isinstance(body["details"], dict)
    if body["error_code"] == "DATA_VALIDATION_ERROR":
        assert body["details"]["errors"]
        for each in body["details"]["errors"]:
            assert set(each) == {"path", "message", "code"}
            assert all(isinstance(text, str) for text in each.values())


def paths(body: dict[str, Any]) -> list[str]:
    """Where the failures of a 422 are."""
    return [each["path"] for each in body["details"]["errors"]]
