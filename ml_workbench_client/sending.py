"""Sending: one request until it is answered, by the rules of what may be repeated; bodies written, answers read.

Retries: what never left this machine is sent again whatever it is. What left and was not answered, and what was
answered with 429 or 503 (or with a proxy's 502 or 504), is sent again only where that does nothing twice: reading, and
what carries the Idempotency-Key that is made here, once a call. Between two tries stands the service's `Retry-After`,
else an exponential backoff with jitter.
"""

import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from common_lib.exceptions import DataValidationError, UpstreamError
from ml_workbench_client import errors
from ml_workbench_client.plans import Carrier, Linked, M, Plan, do
from ml_workbench_client.routes import Repeat, Route
from ml_workbench_client.wire import Answer, Pause, Request, Send
from ml_workbench_service.contracts.contract import iso

Read = TypeVar("Read")
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Failures before the first byte left."""
TRY_AGAIN = (429, 503)
FROM_BETWEEN = (502, 504)
"""Tried again where a proxy said so; from the service itself they are its answer about a third server."""


@dataclass(frozen=True)
class Patience:
    """How often and how long the client tries again.

    Attributes:
        num_retries: after the first try.
        first_s: the first wait, doubled each time up to `longest_s`; half of it is chance.
        longest_retry_after_s: a longer `Retry-After` is not waited for, but raised.
        num_reconnects: of an event stream, one after the other without an event between.
    """

    num_retries: int = 4
    first_s: float = 0.25
    longest_s: float = 8.0
    longest_retry_after_s: float = 60.0
    num_reconnects: int = 12

    def backoff_s(self, num_failures: int) -> float:
        """The wait after so many failures."""
        whole: float = min(self.first_s * 2.0 ** (num_failures - 1), self.longest_s)
        return whole * random.uniform(0.5, 1.0)


def answered(request: Request, patience: Patience, url: str) -> Plan[Answer]:
    """The answer with a status below 400; raises the service's error otherwise, after the retries that are allowed."""
    failures = 0
    while True:
        wait: float | None
        try:
            answer = yield from do(Send(request))
        except httpx.TransportError as error:
            was_sent = not isinstance(error, NOT_SENT)
            failure = errors.unreachable(error, url=url, was_sent=was_sent)
            wait = patience.backoff_s(failures + 1) if _may_repeat(request, error) else None
            cause: Exception | None = error
        else:
            if answer.status < 400:
                return answer
            failure, cause = errors.error_of(answer), None
            wait = _wait_s(request, answer, patience, failures + 1)
        failures += 1
        if wait is None or failures > patience.num_retries:
            raise failure from cause
        yield from do(Pause(wait))


def _may_repeat(request: Request, error: httpx.TransportError) -> bool:
    """Whether the request may be sent again after this failure; one that is slow is not made faster by asking twice."""
    if isinstance(error, NOT_SENT):
        return True
    if isinstance(error, httpx.TimeoutException):
        return request.route.repeat is Repeat.KEYED
    return request.route.repeat is not Repeat.NEVER


def _wait_s(request: Request, answer: Answer, patience: Patience, num_failures: int) -> float | None:
    """How long to wait before the next try; None: none."""
    from_between = answer.status in FROM_BETWEEN and errors.platform_body(answer) is None
    if request.route.repeat is Repeat.NEVER or not (answer.status in TRY_AGAIN or from_between):
        return None
    told_s = errors.retry_after_s(answer)
    if told_s is None:
        return patience.backoff_s(num_failures)
    return told_s if told_s <= patience.longest_retry_after_s else None


def json_of(value: Any) -> Any:
    """Contracts, moments, decimals and numbers of numpy as what JSON has."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(name): json_of(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_of(each) for each in value]
    if hasattr(value, "isoformat"):
        return iso(value) if getattr(value, "tzinfo", None) is not None else value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    for to_list in ("tolist", "to_list", "to_pylist"):  # of numpy and pandas, polars, pyarrow
        if hasattr(value, to_list):
            return getattr(value, to_list)()
    return to_jsonable_python(value)


def written(body: Any) -> bytes:
    """The body as JSON.

    Raises:
        DataValidationError: a number in it is not finite, or something in it has no place in JSON.
    """
    try:
        return json.dumps(json_of(body), allow_nan=False).encode()
    except ValueError as error:
        raise DataValidationError.at("body", f"every value must be finite and have a place in JSON: {error}") from error


def body_of(request: Any, fields: Mapping[str, Any]) -> Any:
    """A contract (or a dictionary), with further fields over it; the service says what is wrong with them."""
    given = {} if request is None else json_of(request)
    return {**given, **json_of(dict(fields))}


def read(contract: type[Read], data: Any) -> Read:
    """A contract from what was answered; keys that a newer service added are left out.

    Raises:
        UpstreamError: it is something else.
    """
    adapter = TypeAdapter(contract)
    try:
        return adapter.validate_python(data) if not isinstance(data, bytes) else adapter.validate_json(data)
    except ValidationError as error:
        found = json.loads(data) if isinstance(data, bytes) else data
        unknown = [each["loc"] for each in error.errors(include_url=False) if each["type"] == "extra_forbidden"]
        try:
            return adapter.validate_python(_without(found, unknown))
        except ValidationError as second:
            first = second.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UpstreamError(
                f"the service answered something that this client cannot read ({place}: {first['msg']}); use the "
                "client of the service's own version"
            ) from second


def _without(data: Any, places: list[tuple[int | str, ...]]) -> Any:
    """A copy of JSON data without what stands at these places."""
    copied = json.loads(json.dumps(data))
    for place in places:
        node = copied
        for part in place[:-1]:
            is_there = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int))
            node = node[part] if is_there else node  # a part may also be a union's word for its branch
        if isinstance(node, dict):
            node.pop(place[-1], None)
    return copied


@dataclass(frozen=True)
class Link:
    """What every object of one client shares. The key is in the headers of httpx's client and nowhere else."""

    carrier: Carrier
    url: str
    patience: Patience


class Resource(Linked[M], Generic[M]):
    """What speaks to the service over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._carrier = link.carrier

    def _ask(
        self,
        route: Route,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        accept: str = "application/json",
        **path: str,
    ) -> Plan[Answer]:
        """The answer of one operation."""
        headers = {"Accept": accept}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = written(body)
        if route.repeat is Repeat.KEYED:
            headers["Idempotency-Key"] = str(uuid.uuid4())
        request = Request(route, route.at(**path), dict(query or {}), content, headers)
        return (yield from answered(request, self._link.patience, self._link.url))

    def _read(self, contract: type[Read], route: Route, **asked: Any) -> Plan[Read]:
        """The answer of one operation as a contract."""
        answer = yield from self._ask(route, **asked)
        return read(contract, answer.content)
