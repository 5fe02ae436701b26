"""Routes: every operation of the service, once, with what may be done when an answer does not come.

`ROUTES` is what a test compares with the running service's OpenAPI document; each is borne by a method (`Operation`,
`Reading` or `Listed` in `plans`), which is the table from operation to method.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

API = "/api/v1"


class Repeat(StrEnum):
    """What may be sent again once it has perhaps been carried out. What never left this machine always may be."""

    ALWAYS = "always"  # reading, and what does nothing the second time
    KEYED = "keyed"  # with the Idempotency-Key that the client makes: the second time gets the first answer
    NEVER = "never"  # a second time would do it twice, or be told that there is nothing left to do


@dataclass(frozen=True)
class Route:
    """One operation: method, path with its parameters in braces, and whether it may be repeated."""

    method: str
    path: str
    repeat: Repeat = Repeat.NEVER

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def at(self, **parameters: str) -> str:
        """The path with its parameters filled in and encoded, a slash among them."""
        return self.path.format(**{name: quote(value, safe="") for name, value in parameters.items()})


ROUTES: dict[str, Route] = {}
"""Every route by its own words, `POST /api/v1/models/train`."""


def _route(words: str, repeat: Repeat | None = None) -> Route:
    method, _, path = words.partition(" ")
    route = Route(method, path, repeat or (Repeat.ALWAYS if method == "GET" else Repeat.NEVER))
    ROUTES[str(route)] = route
    return route


HEALTH = _route("GET /health")
LIVE = _route("GET /health/live")
READY = _route("GET /health/ready")
METRICS = _route("GET /metrics")

LIST_MODELS = _route(f"GET {API}/models")
SHOW_MODEL = _route(f"GET {API}/models/{{model_id}}")
LIST_VERSIONS = _route(f"GET {API}/models/{{model_id}}/versions")
SHOW_VERSION = _route(f"GET {API}/models/{{model_id}}/versions/{{version}}")
REMOVE_VERSION = _route(f"DELETE {API}/models/{{model_id}}/versions/{{version}}")
RESTORE_VERSION = _route(f"POST {API}/models/{{model_id}}/versions/{{version}}/restore")
PURGE_MODEL = _route(f"DELETE {API}/models/{{model_id}}")
TRAIN = _route(f"POST {API}/models/train", Repeat.KEYED)
PREDICT = _route(f"POST {API}/models/{{model_id}}/predict")
PREDICT_BATCH = _route(f"POST {API}/models/{{model_id}}/predict/batch")
DEPLOY = _route(f"POST {API}/models/{{model_id}}/deploy", Repeat.KEYED)
UNDEPLOY = _route(f"POST {API}/models/{{model_id}}/undeploy")
MONITORING = _route(f"GET {API}/models/{{model_id}}/monitoring")

VERSION_SERIES = _route(f"GET {API}/models/{{model_id}}/versions/{{version}}/series")
LIST_FIGURES = _route(f"GET {API}/models/{{model_id}}/versions/{{version}}/figures")
FIGURE = _route(f"GET {API}/models/{{model_id}}/versions/{{version}}/figures/{{name}}")
REPORT = _route(f"GET {API}/models/{{model_id}}/versions/{{version}}/report")
DESK_REPORT = _route(f"GET {API}/models/{{model_id}}/versions/{{version}}/desk-report")
IMPORTANCE = _route(f"POST {API}/models/{{model_id}}/versions/{{version}}/importance")
COMPARE = _route(f"GET {API}/compare")

LIST_PREDICTIONS = _route(f"GET {API}/predictions")
REPORT_OUTCOME = _route(f"POST {API}/predictions/{{prediction_id}}/outcome", Repeat.ALWAYS)

LIST_DEPLOYMENTS = _route(f"GET {API}/deployments")
SHOW_DEPLOYMENT = _route(f"GET {API}/deployments/{{deployment_id}}")
ROLL_BACK = _route(f"POST {API}/deployments/{{deployment_id}}/rollback")

MODEL_TYPES = _route(f"GET {API}/model-types")
LIST_FEATURES = _route(f"GET {API}/features")
READ_FEATURES = _route(f"GET {API}/features/{{symbol}}")
READ_FEATURE_BATCH = _route(f"POST {API}/features/batch", Repeat.ALWAYS)
LABELS = _route(f"GET {API}/labels/{{symbol}}")
LIST_SERIES = _route(f"GET {API}/series")

LIST_JOBS = _route(f"GET {API}/jobs")
SHOW_JOB = _route(f"GET {API}/jobs/{{job_id}}")
JOB_EVENTS = _route(f"GET {API}/jobs/{{job_id}}/events")
JOB_LOG = _route(f"GET {API}/jobs/{{job_id}}/log")
CANCEL_JOB = _route(f"POST {API}/jobs/{{job_id}}/cancel", Repeat.ALWAYS)
DELETE_JOB = _route(f"DELETE {API}/jobs/{{job_id}}")
JOB_CURVES = _route(f"GET {API}/jobs/{{job_id}}/curves")
JOB_SERIES = _route(f"GET {API}/jobs/{{job_id}}/series")

LIST_EXPERIMENTS = _route(f"GET {API}/experiments")
START_EXPERIMENT = _route(f"POST {API}/experiments", Repeat.KEYED)
SHOW_EXPERIMENT = _route(f"GET {API}/experiments/{{experiment_id}}")
TRIALS = _route(f"GET {API}/experiments/{{experiment_id}}/trials")
LIST_EXPERIMENT_FIGURES = _route(f"GET {API}/experiments/{{experiment_id}}/figures")
EXPERIMENT_FIGURE = _route(f"GET {API}/experiments/{{experiment_id}}/figures/{{name}}")

QUEUE = _route(f"GET {API}/queue")
LIST_AUDIT = _route(f"GET {API}/audit")
LIST_DEAD_LETTERS = _route(f"GET {API}/queue/dead-letters")
REQUEUE = _route(f"POST {API}/queue/dead-letters/{{letter_id}}/requeue")
DISCARD = _route(f"DELETE {API}/queue/dead-letters/{{letter_id}}")
REPLAY = _route(f"POST {API}/replays")
TEST_RESILIENCE = _route(f"POST {API}/resilience")
LIST_FAULTS = _route(f"GET {API}/resilience/faults")

LIST_AGENTS = _route(f"GET {API}/agents")
CREATE_AGENT = _route(f"POST {API}/agents")
SHOW_AGENT = _route(f"GET {API}/agents/{{agent_id}}")
START_AGENT = _route(f"POST {API}/agents/{{agent_id}}/start", Repeat.ALWAYS)
STOP_AGENT = _route(f"POST {API}/agents/{{agent_id}}/stop", Repeat.ALWAYS)
RESET_AGENT = _route(f"POST {API}/agents/{{agent_id}}/reset")
Q_TABLE = _route(f"GET {API}/agents/{{agent_id}}/q-table")
DECISIONS = _route(f"GET {API}/agents/{{agent_id}}/decisions")
LIST_AGENT_FIGURES = _route(f"GET {API}/agents/{{agent_id}}/figures")
AGENT_FIGURE = _route(f"GET {API}/agents/{{agent_id}}/figures/{{name}}")
DELETE_AGENT = _route(f"DELETE {API}/agents/{{agent_id}}")


def query(**parameters: Any) -> dict[str, str]:
    """Query parameters as texts, those left out left out; moments as ISO 8601, lists with commas between."""
    return {name: _written(value) for name, value in parameters.items() if value is not None}


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(_written, value))
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
