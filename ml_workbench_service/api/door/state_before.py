"""State before a change, for the audit log: of the thing that an operation is about to change, the few facts that
tell what was lost or replaced. What is not there, or cannot be read, is null.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from common_lib.exceptions import PlatformError
from ml_workbench_service.access.operations import API, Operation
from ml_workbench_service.agents.status import agent_folder, read_agent
from ml_workbench_service.api.app_state import AppState

Parameters = Mapping[str, str]

log = logging.getLogger(__name__)


def state_before(service: AppState, operation: Operation, path: str) -> Any:
    """Plain JSON; null for what is new. Blocking."""
    look = LOOKS.get(operation.name)
    if look is None:
        return None
    try:
        return look(service, operation.parameters(path))
    except (PlatformError, OSError, ValueError) as error:
        log.debug("nothing could be read before %s: %s", operation.name, error)
        return None


def _live(service: AppState, given: Parameters) -> Any:
    live = service.workbench.history.live(given["model_id"])
    if live is None:
        return {"live": None}
    return {"live": live.version, "deployment": live.id, "digest": live.digest, "target": live.deployment_target}


def _deployment(service: AppState, given: Parameters) -> Any:
    found = service.workbench.history.get(given["deployment_id"])
    return {"status": found.status, **_live(service, {"model_id": found.model_id})}


def _version(service: AppState, given: Parameters) -> Any:
    card = service.workbench.registry.card(given["model_id"], given["version"])
    return {"status": card.status, "digest": card.digest}


def _model(service: AppState, given: Parameters) -> Any:
    cards = service.workbench.registry.cards(given["model_id"])
    return {"versions": {card.version: card.digest for card in cards[:100]}, "num_versions": len(cards)}


def _job(service: AppState, given: Parameters) -> Any:
    job = service.store.get(given["job_id"])
    return {"kind": job.kind, "status": job.status, "result": job.result}


def _agent(service: AppState, given: Parameters) -> Any:
    found = read_agent(agent_folder(service.workbench.state_dir, given["agent_id"]))
    return {
        "status": found.status, "mode": found.mode, "num_applied": found.num_applied,
        "cumulative_reward": found.cumulative_reward, "positions": found.positions,
    }  # fmt: skip


def _outcome(service: AppState, given: Parameters) -> Any:
    return service.ledger.get(given["prediction_id"]).outcome.model_dump(mode="json")


LOOKS: Mapping[str, Callable[[AppState, Parameters], Any]] = {
    f"POST {API}/models/{{model_id}}/deploy": _live,
    f"POST {API}/models/{{model_id}}/undeploy": _live,
    f"POST {API}/deployments/{{deployment_id}}/rollback": _deployment,
    f"DELETE {API}/models/{{model_id}}/versions/{{version}}": _version,
    f"POST {API}/models/{{model_id}}/versions/{{version}}/restore": _version,
    f"DELETE {API}/models/{{model_id}}": _model,
    f"POST {API}/jobs/{{job_id}}/cancel": _job,
    f"DELETE {API}/jobs/{{job_id}}": _job,
    f"POST {API}/agents/{{agent_id}}/start": _agent,
    f"POST {API}/agents/{{agent_id}}/stop": _agent,
    f"POST {API}/agents/{{agent_id}}/reset": _agent,
    f"DELETE {API}/agents/{{agent_id}}": _agent,
    f"POST {API}/predictions/{{prediction_id}}/outcome": _outcome,
}
"""What is looked at; the others make something new, or say themselves what they took (dead letters)."""
