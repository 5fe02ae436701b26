"""What a service is asked in each case: every GET of its document, filled in with what there is, and common POSTs."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

API = "/api/v1"
JSON = {"Content-Type": "application/json"}
OK = range(200, 305)
STREAMED = f"{API}/jobs/{{job_id}}/events"
GIVEN = {
    f"{API}/features/{{symbol}}": "?timeframe=1h&features=sma_20&start_date=2024-01-08T00:00:00Z"
    "&end_date=2024-01-09T00:00:00Z",
    f"{API}/labels/{{symbol}}": "?timeframe=1h&target=price_change_1h&start_date=2024-01-08T00:00:00Z"
    "&end_date=2024-01-09T00:00:00Z",
}
LISTS = {
    f"{API}/models": ("models", "id"), f"{API}/jobs": ("jobs", "id"), f"{API}/experiments": ("experiments", "id"),
    f"{API}/deployments": ("deployments", "id"), f"{API}/agents": ("agents", "id"),
}  # fmt: skip
MOST_OF_A_STREAM = 4096
NUM_OTHERS = 6


@dataclass(frozen=True)
class Question:
    """One request, and which statuses its operation may answer with."""

    method: str
    path: str
    documented: frozenset[int]
    body: Any = None
    about: tuple[str, ...] = ()  # ids that it names
    is_stream: bool = False

    def ask(self, client: httpx.Client) -> tuple[int, bytes]:
        """Status and body; 0 where the connection broke."""
        try:
            if self.is_stream:
                return self._begun(client)
            content = None if self.body is None else json.dumps(self.body).encode()
            answer = client.request(self.method, self.path, content=content, headers=JSON if content else None)
        except httpx.TransportError as error:
            return 0, repr(error).encode()
        return answer.status_code, answer.content

    def is_kept(self, status: int) -> bool:
        """Whether the promise is kept with this status."""
        return status in OK or (status in self.documented and status != 500)

    def _begun(self, client: httpx.Client) -> tuple[int, bytes]:
        """The beginning of an event stream: one of a job whose end was damaged goes on for ever."""
        with client.stream(self.method, self.path, timeout=httpx.Timeout(60, read=0.3)) as answer:
            try:
                return answer.status_code, next(answer.iter_bytes(MOST_OF_A_STREAM), b"")
            except httpx.ReadTimeout:
                return answer.status_code, b""


@dataclass
class QuestionList:
    """Every question to one service, the ids that its lists had at the beginning, and what was answered then."""

    every: list[Question]
    lists: dict[str, set[str]] = field(default_factory=dict)
    at_first: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, client: httpx.Client) -> "QuestionList":
        """Reads the document and the lists, and asks everything once.

        Raises:
            RuntimeError: something is refused before anything is damaged.
        """
        document = client.get("/openapi.json").json()
        lists = {path: _ids(client.get(path, params={"limit": 200}).content, path) for path in LISTS}
        shown = {path: _ids(client.get(path).content, path) for path in LISTS}  # a page of it, as is asked again
        made = cls(_questions(document, client, lists), shown)
        for each in made.every:
            status, content = each.ask(client)
            made.at_first[each.method, each.path] = status
            if not each.is_kept(status):
                raise RuntimeError(f"{each.method} {each.path} answers {status} undamaged: {content[:500]!r}")
        return made

    def about(self, place: str, chance: random.Random, *, num: int | None = None) -> list[Question]:
        """Questions that name what a damaged file belongs to, lists, and some others by chance.

        Args:
            num: so many at most, by chance; None: all that are near, and a few others.
        """
        near = [each for each in self.every if any(f"/{name}" in place for name in each.about) or not each.about]
        far = [each for each in self.every if each not in near]
        asked = [*near, *chance.sample(far, min(NUM_OTHERS, len(far)))]
        return asked if num is None else chance.sample(asked, min(num, len(asked)))

    def missing(self, question: Question, content: bytes, of_file: bytes) -> set[str]:
        """What a list of now lacks of what it had, but for what the damaged file's path and content name."""
        if question.path not in self.lists or question.method != "GET":
            return set()
        lacking = self.lists[question.path] - _ids(content, question.path)
        return {each for each in lacking if each.encode() not in of_file}


def _ids(content: bytes, path: str) -> set[str]:
    name, key = LISTS[path]
    return {each[key] for each in json.loads(content)[name]}


def _questions(document: dict[str, Any], client: httpx.Client, lists: dict[str, set[str]]) -> list[Question]:
    values = _values(client, lists)
    found = []
    for template, operations in document["paths"].items():
        documented = {method: _statuses(each) for method, each in operations.items()}
        if "get" in documented:
            for filled in _filled(template, values):
                path = "".join((filled[0], GIVEN.get(template, "")))
                if template == f"{API}/compare":
                    path += "?versions=" + ",".join(f"{each}@{version}" for each, version in values["versions"][:2])
                found.append(Question("GET", path, documented["get"], about=filled[1], is_stream=template == STREAMED))
    return [*found, *_posts(document, values)]


def _posts(document: dict[str, Any], values: dict[str, Any]) -> list[Question]:
    """Of those that change nothing that a later case would notice."""
    window = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": "2024-01-10T12:00:00Z"}
    span = {"start_date": "2024-01-08T00:00:00Z", "end_date": "2024-01-09T00:00:00Z"}
    features = {"symbols": ["EUR/USD"], "timeframe": "1h", "features": ["sma_20"], **span}
    found = [Question("POST", f"{API}/features/batch", _documented(document, f"{API}/features/batch"), features)]
    for model_id, version in values["versions"]:
        for name, body in (("predict", window), ("predict/batch", {"items": [window, window]})):
            documented = _documented(document, f"{API}/models/{{model_id}}/{name}")
            path = f"{API}/models/{model_id}/{name}?enqueue=never"
            body = {**body, "version": version} if name == "predict" else body
            found.append(Question("POST", path, documented, body, (model_id,)))
        documented = _documented(document, f"{API}/models/{{model_id}}/versions/{{version}}/restore")
        found.append(
            Question("POST", f"{API}/models/{model_id}/versions/{version}/restore", documented, None, (model_id,))
        )
    train = {
        "name": "No such columns", "model_type": "time_series", "features": ["no_such_feature_of_any_store"],
        "target": "price_change_1h", "symbols": ["EUR/USD"], **span,
    }  # fmt: skip
    found.append(Question("POST", f"{API}/models/train", _documented(document, f"{API}/models/train"), train))
    unknown = {"version": "9.9.9", "deployment_target": "local"}
    for model_id in sorted({each for each, _ in values["versions"]}):
        documented = _documented(document, f"{API}/models/{{model_id}}/deploy")
        found.append(Question("POST", f"{API}/models/{model_id}/deploy", documented, unknown, (model_id,)))
    return found


def _documented(document: dict[str, Any], path: str) -> frozenset[int]:
    return _statuses(document["paths"][path]["post"])


def _statuses(operation: dict[str, Any]) -> frozenset[int]:
    return frozenset(int(each) for each in operation["responses"] if each.isdecimal())


def _values(client: httpx.Client, lists: dict[str, set[str]]) -> dict[str, Any]:
    versions = []
    for model_id in sorted(lists[f"{API}/models"]):
        found = client.get(f"{API}/models/{model_id}/versions").json()["versions"]
        versions += [(model_id, each["version"]) for each in found]
    jobs = client.get(f"{API}/jobs", params={"limit": 200}).json()["jobs"]
    return {
        "versions": versions,
        "model_id": sorted({each for each, _ in versions}),
        "job_id": [each["id"] for each in jobs],
        "experiment_id": sorted(lists[f"{API}/experiments"]),
        "deployment_id": sorted(lists[f"{API}/deployments"])[:3],
        "agent_id": sorted(lists[f"{API}/agents"]),
        "symbol": ["EUR/USD"],
    }


def _filled(template: str, values: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Every path of a template that the values give, with the ids in it."""
    plain = template.replace("{symbol:path}", "{symbol}")
    if "{model_id}" in plain and "{version}" in plain:
        return [
            (path, (model_id,))
            for model_id, version in values["versions"]
            for path in _named(plain.replace("{model_id}", model_id).replace("{version}", version))
        ]
    (name,) = re.findall(r"{(\w+)}", plain)[:1] or [""]
    if not name:
        return [(plain, ())]
    return [
        (path, () if name == "symbol" else (each,))
        for each in values.get(name, ())
        for path in _named(plain.replace(f"{{{name}}}", each))
    ]


def _named(path: str) -> Sequence[str]:
    """Figures by their names; of what is left open nothing is asked."""
    if "/figures/{name}" in path:
        names = {"agents": ("q_values",), "experiments": ("importance",)}
        kind = next((each for each in names if f"/{each}/" in path), "")
        return [path.replace("{name}", each) for each in names.get(kind, ("equity", "learning_curve"))]
    return [] if "{" in path else [path]
