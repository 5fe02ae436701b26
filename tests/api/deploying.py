"""Deploying over HTTP, and looking at what came of it."""

from typing import Any

import httpx

from tests.service_process import SEED_PREDICT


def send(client: httpx.Client, model_id: str, version: str, key: str | None = None, **changes: Any) -> httpx.Response:
    """A deployment to the target `local`; keyword arguments replace keys of the body."""
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"version": version, "deployment_target": "local", **changes}
    return client.post(f"/api/v1/models/{model_id}/deploy", json=body, headers=headers)


def deployed(client: httpx.Client, model_id: str, version: str, **changes: Any) -> dict[str, Any]:
    """The deployment of a 200."""
    answer = send(client, model_id, version, **changes)
    assert answer.status_code == 200, answer.text
    deployment: dict[str, Any] = answer.json()
    return deployment


def history(client: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    """`GET /deployments`, newest first."""
    answer = client.get("/api/v1/deployments", params={"limit": 200, **params})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["deployments"]
    return found


def live_version(client: httpx.Client, model_id: str) -> str | None:
    """What predictions are answered by."""
    record = client.post(f"/api/v1/models/{model_id}/predict", json=SEED_PREDICT).json()
    return str(record["version"]) if record["role"] == "champion" else None
