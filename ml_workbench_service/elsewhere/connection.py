"""Job connection: one worker's way to its job on the control plane, through outages, and no longer than it may.

Every exchange may be said twice, so one that was not answered is said again, until `patience_s` are over. The control
plane's errors are raised as its own. A token that is good for nothing any more ends the attempt: from then on every
call raises `AttemptLostError`, and so it does after an outage that took too long.
"""

import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import orjson
from pydantic import ValidationError

from common_lib import exceptions
from common_lib.exceptions import DataValidationError, PlatformError, UnavailableError
from common_lib.redaction import keep_secret
from ml_workbench_service.contracts.contract import AnyContract, Contract
from ml_workbench_service.contracts.work_elsewhere import JobToken, TokenExchange
from ml_workbench_service.exchanges.bounded_http import BoundedTransport, within
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.jobs.worker_grant import BEGINS
from ml_workbench_service.jobs.workers_folder import AttemptLostError

PATIENCE_S = 900.0
"""An outage that a worker waits for; a restart of the control plane takes seconds."""
TIMEOUT_S = 60.0
LONG_S = 3600.0
"""For a file."""
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 2.0
AGAIN = frozenset({408, 429, 502, 503, 504, 507})
"""Statuses of a control plane that starts, stops or is short of something."""
ENDED = frozenset({401, 403})
CHUNK = 1 << 20

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class JobConnection:
    """Exchanges about one job; for any threads.

    Args:
        url: `https://host:port/api/v1/jobs/{job_id}`.
        token: the one-time token, or the one that it was exchanged for.
        patience_s: of an outage.

    Raises:
        DataValidationError: an address without HTTPS that is not this machine's own.
    """

    def __init__(self, url: str, token: str, *, patience_s: float = PATIENCE_S) -> None:
        check_address(url)
        keep_secret(token)
        self.url = url.rstrip("/")
        self.token = token
        self._patience_s = patience_s
        self._lost: AttemptLostError | None = None
        self._client = httpx.Client(
            transport=BoundedTransport(), timeout=TIMEOUT_S, follow_redirects=False, trust_env=False
        )

    @property
    def job_id(self) -> str:
        """By the address."""
        return self.url.rpartition("/")[2]

    def begin(self) -> None:
        """Exchanges a one-time token; nothing where it was exchanged already, as in a child of the worker."""
        if self.token.startswith(BEGINS):
            return
        asked = TokenExchange(
            nonce=secrets.token_hex(32),
            **ProcessRecord.of(os.getpid()).model_dump(include={"pid", "started_at", "boot_id"}),
        )
        given = self.put("token", asked, JobToken)
        keep_secret(given.token)
        self.token = given.token

    def get(self, path: str, kind: type[AnyContract], **queries: str) -> AnyContract:
        """What the control plane says under this path below `/worker`."""
        return self._again(lambda: self._read(self._send("GET", path, params=queries), kind))

    def get_bytes(self, path: str, **queries: Any) -> bytes:
        """The same of bytes."""
        return self._again(lambda: self._send("GET", path, params=queries).content)

    def put(self, path: str, said: Contract | bytes, kind: type[AnyContract]) -> AnyContract:
        """Says something, as JSON; what the control plane answers."""
        return self._again(lambda: self.put_once(path, said, kind))

    def put_for_bytes(self, path: str, said: Contract) -> bytes:
        """The same, answered by bytes."""
        body, headers = said.model_dump_json().encode(), {"Content-Type": "application/json"}
        return self._again(lambda: self._send("PUT", path, content=body, headers=headers).content)

    def put_once(
        self, path: str, said: Contract | bytes, kind: type[AnyContract], *, timeout_s: float = TIMEOUT_S
    ) -> AnyContract:
        """The same without a second try; raises httpx.HTTPError or NotNowError where there was no answer."""
        body = said if isinstance(said, bytes) else said.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        return self._read(self._send("PUT", path, content=body, headers=headers, timeout_s=timeout_s), kind)

    def put_file(self, path: str, file: Path) -> None:
        """Sends a file as it is when this begins, whatever is put in its place meanwhile; never held whole."""
        with file.open("rb") as opened:

            def send() -> None:
                opened.seek(0)
                headers = {"Content-Type": "application/octet-stream"}
                self._send("PUT", path, content=_chunks(opened), headers=headers, timeout_s=LONG_S)

            self._again(send)

    def get_file(self, path: str, file: Path) -> None:
        """Puts what the control plane has into a file, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_name(f".{file.name}.coming")

        def receive() -> None:
            with (
                within(LONG_S),
                self._client.stream("GET", self._at(path), headers=self._headers()) as answer,
                staged.open("wb") as opened,
            ):
                self._check(answer)
                for chunk in answer.iter_bytes(CHUNK):
                    opened.write(chunk)

        self._again(receive)
        staged.replace(file)

    def delete(self, path: str) -> None:
        """It is not there afterwards."""
        self._again(lambda: self._send("DELETE", path))

    def check(self) -> None:
        """Raises AttemptLostError once there is nothing more to say."""
        if self._lost is not None:
            raise AttemptLostError(self._lost.message)

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def lose(self, message: str, cause: Exception) -> AttemptLostError:
        """Ends the attempt, for everybody who asks from now on."""
        self._lost = self._lost or AttemptLostError(message)
        self._lost.__cause__ = cause
        return AttemptLostError(self._lost.message)

    def _again(self, exchange: Callable[[], Answer]) -> Answer:
        """The exchange's answer, however often it has to be begun."""
        began_s, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            self.check()
            try:
                return exchange()
            except (httpx.TransportError, NotNowError) as error:
                waited_s = time.monotonic() - began_s
                if pause_s == FIRST_PAUSE_S:
                    log.warning("job %s: the control plane does not answer (%s); trying again", self.job_id, error)
                if waited_s > self._patience_s:
                    raise self.lose(
                        f"the control plane was away for {waited_s:.0f} s; this worker ends, and the job goes on from "
                        "its newest checkpoint once the control plane is back",
                        error,
                    ) from error
                time.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, MOST_PAUSE_S)

    def _send(self, method: str, path: str, *, timeout_s: float = TIMEOUT_S, **content: Any) -> httpx.Response:
        headers = self._headers() | content.pop("headers", {})
        with within(timeout_s), self._client.stream(method, self._at(path), headers=headers, **content) as answer:
            answer.read()
            self._check(answer)
            return answer

    def _at(self, path: str) -> str:
        return f"{self.url}/worker/{quote(path)}".rstrip("/")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def _check(self, answer: httpx.Response) -> None:
        """Raises what the control plane refused it with."""
        if answer.is_success:
            return
        answer.read()
        error = _told(answer)
        if answer.status_code in AGAIN:
            raise NotNowError(error.message)
        if answer.status_code in ENDED:
            raise self.lose(error.message, error) from error
        raise error

    def _read(self, answer: httpx.Response, kind: type[AnyContract]) -> AnyContract:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise UnavailableError(
                "the control plane's answer makes no sense to this worker; run the same version on both"
            ) from error


def check_address(url: str) -> None:
    """Raises DataValidationError for an address at which a token would travel in the clear."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_here = host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"
    if not host or parts.scheme not in ("http", "https") or (parts.scheme == "http" and not is_here):
        raise DataValidationError.at(
            "ML_WORKBENCH_JOB_URL",
            "a worker elsewhere reaches its job by https://host:port/api/v1/jobs/{job_id}; plain http is for this "
            "machine's own loopback: set TLS_CERT and TLS_KEY of the service, or put it behind a proxy with HTTPS, and "
            "set CONTROL_URL",
        )


class NotNowError(Exception):
    """The control plane says that it cannot just now."""


def _told(answer: httpx.Response) -> PlatformError:
    try:
        said = orjson.loads(answer.content)
        kind, message, details = str(said["error_type"]), str(said["message"]), said.get("details")
    except (ValueError, KeyError, TypeError):
        return UnavailableError(f"something that is no control plane answered with status {answer.status_code}")
    found = getattr(exceptions, kind, PlatformError)
    is_ours = isinstance(found, type) and issubclass(found, PlatformError)
    return (found if is_ours else PlatformError)(message, details=details if isinstance(details, dict) else None)


@contextmanager
def connected(url: str, token: str) -> Iterator[JobConnection]:
    """A connection that has begun, for a time."""
    connection = JobConnection(url, token)
    try:
        connection.begin()
        yield connection
    finally:
        connection.close()


def _chunks(opened: Any) -> Iterable[bytes]:
    while chunk := opened.read(CHUNK):
        yield chunk
