"""Operations: each one's scope, and how large its body may be, in one table that a test compares with the routes.

A request is looked up here by method and path before anything else is done with it. What the table does not know needs
a key, and `admin` where a route answers it all the same: a new route without a line here is closed, not open.
"""

from dataclasses import dataclass, field
from enum import StrEnum

KIB, MIB = 1024, 1024 * 1024
API = "/api/v1"
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
NO_BODY = 16 * KIB
"""Of operations that take no body: a few bytes are passed over."""
MOST_BODY_BYTES = 16 * MIB
"""Of what the table does not know, and of batches."""
MOST_FILE_BYTES = 8 * 1024 * MIB
"""Of a file that is never held whole, but put on disk as it comes."""
MOST_KEPT = 1024
ARROW, BYTES = "application/vnd.apache.arrow.stream", "application/octet-stream"


class Scope(StrEnum):
    """What a key may do. None holds another, but `admin` holds them all."""

    READ = "read"
    """Look at everything but the audit log."""
    PREDICT = "predict"
    """Ask models, and tell what came true."""
    TRAIN = "train"
    """Start, cancel and delete jobs: trainings, experiments, replays, importance, tests of resilience."""
    DEPLOY = "deploy"
    """Say what is live: deployments, archived versions, agents, dead letters."""
    ADMIN = "admin"
    """Everything, with what cannot be undone (purges) and what passes a gate (`force`)."""


@dataclass(frozen=True)
class Operation:
    """One operation of the API.

    Attributes:
        scope: None: open to everybody, or to a job's own token (`is_workers`).
        changes: whether the audit log has a line of it.
        kinds: media types that it takes beside JSON; "": none is stated.
        streamed: the one of them whose body is never held whole, so that no limit counts.
    """

    method: str
    path: str
    scope: Scope | None
    most_bytes: int = NO_BODY
    changes: bool = False
    kinds: tuple[str, ...] = ()
    streamed: str | None = None
    is_workers: bool = False
    """Of a worker elsewhere: its route looks at the token of the job's attempt, before the body (`api.elsewhere`)."""

    @property
    def name(self) -> str:
        """`POST /api/v1/models/train`."""
        return f"{self.method} {self.path}"

    def parameters(self, path: str) -> dict[str, str]:
        """The parts of a path of this operation that the braces stand for."""
        pairs = zip(self.path.split("/"), path.split("/"), strict=False)
        return {template[1:-1]: given for template, given in pairs if template.startswith("{")}


OPERATIONS: dict[str, Operation] = {}
"""Every operation by its name."""


def _add(scope: Scope | None, words: str, most_bytes: int = NO_BODY, *, changes: bool | None = None) -> None:
    method, _, path = words.partition(" ")
    is_change = method not in READING if changes is None else changes
    OPERATIONS[words] = Operation(method, path, scope, most_bytes, is_change)


for _path in (
    "/", "/health", "/health/live", "/health/ready", "/docs", "/redoc", "/openapi.json", "/docs-assets/{file:path}",
    "/v2/health/live", "/v2/health/ready",
):  # fmt: skip
    _add(None, f"GET {_path}")
for _path in (
    "/metrics",
    f"{API}/models", f"{API}/models/{{model_id}}", f"{API}/models/{{model_id}}/monitoring",
    f"{API}/models/{{model_id}}/versions", f"{API}/models/{{model_id}}/versions/{{version}}",
    f"{API}/models/{{model_id}}/versions/{{version}}/series", f"{API}/models/{{model_id}}/versions/{{version}}/figures",
    f"{API}/models/{{model_id}}/versions/{{version}}/figures/{{name}}",
    f"{API}/models/{{model_id}}/versions/{{version}}/report",
    f"{API}/models/{{model_id}}/versions/{{version}}/desk-report", f"{API}/compare", f"{API}/predictions",
    f"{API}/model-types", f"{API}/features", f"{API}/features/{{symbol:path}}", f"{API}/series",
    f"{API}/labels/{{symbol:path}}",
    f"{API}/jobs", f"{API}/jobs/{{job_id}}", f"{API}/jobs/{{job_id}}/events", f"{API}/jobs/{{job_id}}/log",
    f"{API}/jobs/{{job_id}}/curves", f"{API}/jobs/{{job_id}}/series",
    f"{API}/experiments", f"{API}/experiments/{{experiment_id}}", f"{API}/experiments/{{experiment_id}}/trials",
    f"{API}/experiments/{{experiment_id}}/figures", f"{API}/experiments/{{experiment_id}}/figures/{{name}}",
    f"{API}/deployments", f"{API}/deployments/{{deployment_id}}", f"{API}/queue", f"{API}/queue/dead-letters",
    f"{API}/agents", f"{API}/agents/{{agent_id}}", f"{API}/agents/{{agent_id}}/q-table",
    f"{API}/agents/{{agent_id}}/decisions", f"{API}/agents/{{agent_id}}/figures",
    f"{API}/agents/{{agent_id}}/figures/{{name}}", f"{API}/resilience/faults",
):  # fmt: skip
    _add(Scope.READ, f"GET {_path}")
_add(Scope.READ, f"POST {API}/features/batch", 64 * KIB, changes=False)

_add(Scope.PREDICT, f"POST {API}/models/{{model_id}}/predict", MIB, changes=False)
_batch = Operation(
    "POST", f"{API}/models/{{model_id}}/predict/batch", Scope.PREDICT, MOST_BODY_BYTES, kinds=(ARROW,), streamed=ARROW
)
OPERATIONS[_batch.name] = _batch
for _path in ("", "/versions/{version}"):
    _add(Scope.PREDICT, f"GET /v2/models/{{model_id}}{_path}")
    _add(Scope.PREDICT, f"GET /v2/models/{{model_id}}{_path}/ready")
    # Clients of the inference protocol state no media type where tensors follow the JSON.
    _infer = Operation(
        "POST", f"/v2/models/{{model_id}}{_path}/infer", Scope.PREDICT, MOST_BODY_BYTES, kinds=("", BYTES)
    )
    OPERATIONS[_infer.name] = _infer
_add(Scope.PREDICT, "GET /v2")
_add(Scope.PREDICT, f"POST {API}/predictions/{{prediction_id}}/outcome", 64 * KIB)

_add(Scope.TRAIN, f"POST {API}/models/train", 128 * KIB)  # 256 features of 130 characters are 34 KiB
_add(Scope.TRAIN, f"POST {API}/experiments", 256 * KIB)
_add(Scope.TRAIN, f"POST {API}/replays", 64 * KIB)
_add(Scope.TRAIN, f"POST {API}/models/{{model_id}}/versions/{{version}}/importance", 8 * KIB)
_add(Scope.TRAIN, f"POST {API}/resilience", 64 * KIB)
_add(Scope.TRAIN, f"POST {API}/jobs/{{job_id}}/cancel")
_add(Scope.TRAIN, f"DELETE {API}/jobs/{{job_id}}")

_add(Scope.DEPLOY, f"POST {API}/models/{{model_id}}/deploy", 256 * KIB)
_add(Scope.DEPLOY, f"POST {API}/models/{{model_id}}/undeploy")
_add(Scope.DEPLOY, f"POST {API}/deployments/{{deployment_id}}/rollback")
_add(Scope.DEPLOY, f"DELETE {API}/models/{{model_id}}/versions/{{version}}")  # `purge=true` needs admin
_add(Scope.DEPLOY, f"POST {API}/models/{{model_id}}/versions/{{version}}/restore")
_add(Scope.DEPLOY, f"POST {API}/agents", 64 * KIB)
_add(Scope.DEPLOY, f"DELETE {API}/agents/{{agent_id}}")
for _verb in ("start", "stop", "reset"):
    _add(Scope.DEPLOY, f"POST {API}/agents/{{agent_id}}/{_verb}")
_add(Scope.DEPLOY, f"POST {API}/queue/dead-letters/{{letter_id}}/requeue")
_add(Scope.DEPLOY, f"DELETE {API}/queue/dead-letters/{{letter_id}}")

# Not audited one by one: what comes of a job is, when it is published.
for _words, _most in (
    ("PUT token", 4 * KIB), ("GET ", NO_BODY), ("PUT beat", NO_BODY), ("PUT events", 4 * MIB), ("PUT trials", 4 * MIB),
    ("PUT log", 32 * MIB), ("GET checkpoint", NO_BODY), ("GET checkpoint/{file:path}", NO_BODY),
    ("PUT checkpoint/{file:path}", MOST_FILE_BYTES), ("DELETE checkpoint/{file:path}", NO_BODY),
    ("PUT bundle/{file:path}", MOST_FILE_BYTES), ("PUT publication", 4 * KIB), ("GET publication", NO_BODY),
    ("GET versions/{model_id}", NO_BODY), ("GET versions/{model_id}/{version}", NO_BODY),
    ("GET versions/{model_id}/{version}/files/{file}", NO_BODY), ("GET store", NO_BODY), ("GET bars", NO_BODY),
    ("PUT columns", 64 * KIB), ("PUT witness", 64 * MIB),
):  # fmt: skip
    _method, _, _path = _words.partition(" ")
    _operation = Operation(
        _method, f"{API}/jobs/{{job_id}}/worker/{_path}".rstrip("/"), None, _most, kinds=(BYTES,), is_workers=True
    )
    OPERATIONS[_operation.name] = _operation

_add(Scope.ADMIN, f"DELETE {API}/models/{{model_id}}")
_add(Scope.ADMIN, f"GET {API}/audit")


@dataclass
class _Node:
    """One part of a path."""

    named: dict[str, "_Node"] = field(default_factory=dict)
    any_part: "_Node | None" = None
    ends: dict[str, Operation] = field(default_factory=dict)
    rests: dict[str, Operation] = field(default_factory=dict)  # of `{name:path}`, which takes all that is left


_ROOT = _Node()
_found: dict[tuple[str, str], Operation] = {}

for _operation in OPERATIONS.values():
    _node = _ROOT
    for _part in _operation.path.split("/")[1:]:
        if _part.endswith(":path}"):
            _node.rests[_operation.method] = _operation
            break
        if _part.startswith("{"):
            _node.any_part = _node.any_part or _Node()
            _node = _node.any_part
        else:
            _node = _node.named.setdefault(_part, _Node())
    else:
        _node.ends[_operation.method] = _operation


def operation_of(method: str, path: str) -> Operation | None:
    """The operation that a request asks for; None where there is none. One look-up for paths that come often."""
    found = _found.get((method, path))
    if found is None:
        found = _search(_ROOT, "GET" if method == "HEAD" else method, path.split("/")[1:])
        if found is not None:
            if len(_found) >= MOST_KEPT:
                _found.clear()
            _found[method, path] = found
    return found


def methods_of(path: str) -> tuple[str, ...]:
    """Every method that the table has for a path, in order: for its own words, where it has any for them."""
    found = [each for method in METHODS if (each := operation_of(method, path)) is not None]
    fewest = min((each.path.count("{") for each in found), default=0)
    return tuple(each.method for each in found if each.path.count("{") == fewest)


def _search(node: _Node, method: str, parts: list[str]) -> Operation | None:
    if not parts:
        return node.ends.get(method)
    part, rest = parts[0], parts[1:]
    if part in node.named and (found := _search(node.named[part], method, rest)) is not None:
        return found
    if part and node.any_part is not None and (found := _search(node.any_part, method, rest)) is not None:
        return found
    return None if _is_a_path(node, parts) else node.rests.get(method)


def _is_a_path(node: _Node, parts: list[str]) -> bool:
    """Whether these very words are an operation's path: then they are no symbol, and a method it lacks is a 405.

    A `{name}` still takes such a word, since a model may be called `train`.
    """
    for part in parts:
        if part not in node.named:
            return False
        node = node.named[part]
    return bool(node.ends)
