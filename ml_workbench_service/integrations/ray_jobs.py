"""Ray's Jobs REST API: submissions of a cluster, asked of its head over HTTP; nothing here imports ray.

    POST   /api/jobs/            submits; an id that is taken is refused, and so is never run twice
    GET    /api/jobs/{id}        how it stands, with the node that it runs on
    GET    /api/jobs/            all of them
    POST   /api/jobs/{id}/stop   RAY_JOB_STOP_SIGNAL, and SIGKILL RAY_JOB_STOP_WAIT_TIME_S later
    DELETE /api/jobs/{id}        forgets one that has ended, so that its id is free again
    GET    /api/v0/logs/…        what it prints: `file` what there is, `stream` and what is to come
    GET    /api/version

Every exchange ends in bounded time, however slowly the head answers; the streams of logs alone have no end of their
own. With `RAY_AUTH_MODE=token` on the cluster each carries the token (`Authorization: Bearer …`), without which the
head answers 401, and 403 to a wrong one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import Field

from common_lib.exceptions import UnavailableError, UpstreamError
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.exchanges.bounded_http import BoundedTransport, within

TIMEOUT_S = 10.0
"""For a whole exchange: a head whose processors are busy takes seconds to start a submission's supervisor."""
CONNECT_TIMEOUT_S = 3.0
QUIET_S = 60.0
"""That a stream may bring nothing, after which it is begun anew."""
LOG_PERIOD_S = 0.5
"""Between two looks of the cluster into a file that grows."""
LIVING = frozenset({"PENDING", "RUNNING"})
NEVER_BEGAN = frozenset({"JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"})
"""Errors of submissions that found no room in time (RAY_JOB_START_TIMEOUT_SECONDS): nothing of theirs has run."""


class RayUnreachable(UnavailableError):
    """The head cannot be reached, does not answer in time, or wants another token.

    Attributes:
        was_sent: whether the request may have arrived, and what it asked for may have happened.
    """

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message, retry_after_s=5)
        self.was_sent = was_sent


class RayFault(RayUnreachable):
    """The head answers, but cannot do this one thing now."""


class RayRefused(UpstreamError):
    """The head answered that it will not do this, now or later."""


class Submission(Contract):
    """One submission as the head knows it.

    Attributes:
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        message: why, in Ray's words.
        error_type: of a failed one.
        driver_node_id: the node that it runs on, once it does.
        driver_exit_code: of its process, where Ray saw it end by itself.
    """

    submission_id: str | None = None
    status: str
    message: str | None = None
    error_type: str | None = None
    metadata: dict[str, str] | None = Field(default_factory=dict)
    driver_node_id: str | None = None
    driver_exit_code: int | None = None

    @property
    def is_living(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LIVING

    @property
    def never_began(self) -> bool:
        """Whether it failed because there was no room for it in time."""
        return self.status == "FAILED" and self.error_type in NEVER_BEGAN


class RayJobs:
    """The jobs of one cluster. Safe for several threads.

    Args:
        address: of the head's dashboard, such as `http://head:8265`.
        token: of RAY_AUTH_TOKEN, where the cluster asks for one.
        timeout_s: for a whole exchange.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.address = address.rstrip("/")
        self._timeout_s = timeout_s
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._client = httpx.Client(
            transport=BoundedTransport(), base_url=self.address, headers=headers, timeout=timeout, trust_env=False
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def version(self) -> str:
        """Of Ray on the head, such as `2.60.0`."""
        answer = self._asked("GET", "/api/version")
        return str(_json(answer).get("ray_version", ""))

    def submit(self, body: Mapping[str, Any]) -> bool:
        """Submits under the body's `submission_id`; False where the head has one of that id already.

        Raises:
            RayRefused: the body is not what the head takes.
            RayUnreachable: it may have been submitted all the same, unless `was_sent` is False.
        """
        answer = self._exchanged("POST", "/api/jobs/", json=dict(body))
        if answer.status_code == httpx.codes.OK:
            return True
        if "already exists" in answer.text:
            return False
        raise self._failure(answer)

    def get(self, submission_id: str) -> Submission | None:
        """How it stands; None of one that the head does not know."""
        answer = self._exchanged("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return _submission(_json(self._checked(answer)))

    def all(self) -> list[Submission]:
        """Every submission that the head knows, other programs' too."""
        found = _parsed(self._asked("GET", "/api/jobs/"))
        if not isinstance(found, list):
            raise UpstreamError("Ray's head listed its jobs as something else than a list; check RAY_ADDRESS")
        return [_submission(each) for each in found if isinstance(each, dict) and each.get("submission_id")]

    def stop(self, submission_id: str) -> None:
        """Has it stopped; one that has ended, or that nobody knows, is left alone."""
        answer = self._exchanged("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._checked(answer)

    def forget(self, submission_id: str) -> None:
        """Has the head forget one that has ended."""
        answer = self._exchanged("DELETE", f"/api/jobs/{submission_id}")
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._checked(answer)

    @contextmanager
    def log(self, found: Submission, *, follow: bool) -> Iterator[Iterator[bytes]]:
        """What a submission prints, from its first byte on, in pieces.

        Args:
            found: has a node.
            follow: whether to wait for what is to come, until nobody asks for more; else it ends where the log ends.

        Raises (here, or at a piece):
            RayUnreachable: the head or the node is out of reach, or nothing came for `QUIET_S`.
        """
        asked = {"node_id": found.driver_node_id or "", "submission_id": found.submission_id or "", "lines": "-1"}
        if follow:
            asked["interval"] = str(LOG_PERIOD_S)
        place = f"/api/v0/logs/{'stream' if follow else 'file'}"
        timeout = httpx.Timeout(QUIET_S if follow else self._timeout_s, connect=CONNECT_TIMEOUT_S)
        with self._reached(), self._client.stream("GET", place, params=asked, timeout=timeout) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise self._failure(answer)
            yield answer.iter_bytes()

    def _asked(self, method: str, path: str) -> httpx.Response:
        return self._checked(self._exchanged(method, path))

    def _exchanged(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with self._reached(), within(self._timeout_s):
            return self._client.request(method, path, **kwargs)

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code != httpx.codes.OK:
            raise self._failure(answer)
        return answer

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise RayUnreachable(
                f"Ray's head at {self.address} cannot be reached ({error}); see whether it runs, and check RAY_ADDRESS",
                was_sent=False,
            ) from error
        except httpx.TimeoutException as error:
            raise RayUnreachable(f"Ray's head at {self.address} did not answer in time", was_sent=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RayUnreachable(
                f"Ray's head at {self.address} broke off its answer ({error})", was_sent=True
            ) from error

    def _failure(self, answer: httpx.Response) -> RayUnreachable | RayRefused:
        """What an answer other than 200 means: who asks for a token, a fault of the moment, or a refusal."""
        status, words = answer.status_code, _last_line(answer.text)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return RayUnreachable(
                f"Ray's head at {self.address} asks for another token (status {status}); set RAY_AUTH_TOKEN to the "
                "cluster's, which lies in ~/.ray/auth_token on its head",
                was_sent=False,
            )
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return RayFault(f"Ray's head at {self.address} answered with {status}: {words}", was_sent=True)
        return RayRefused(f"Ray's head refused it with {status}: {words}", details={"status": status})


def _json(answer: httpx.Response) -> dict[str, Any]:
    found = _parsed(answer)
    if not isinstance(found, dict):
        raise UpstreamError("what answers at RAY_ADDRESS is not Ray's dashboard: its answer is no JSON object")
    return found


def _parsed(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content)
    except ValueError as error:
        raise UpstreamError("what answers at RAY_ADDRESS is not Ray's dashboard: its answer is no JSON") from error


def _submission(found: Mapping[str, Any]) -> Submission:
    known = {name: found[name] for name in Submission.model_fields if name in found}
    try:
        return Submission.model_validate(known)
    except ValueError as error:
        raise UpstreamError("Ray's head describes a job in a way that this version does not know") from error


def _last_line(text: str) -> str:
    """Of a traceback the sentence, of anything else its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return lines[-1][:500] if lines else "without a word"
