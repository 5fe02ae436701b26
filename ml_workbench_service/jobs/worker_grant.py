"""Worker grant: which attempt of a job may say and publish something from elsewhere, by a token of its own.

    <job>/worker_grant.json     attempt, and the digests of its tokens: never a token itself

Whoever starts a worker elsewhere issues a one-time token. The worker exchanges it at its start; the token that it gets
is good for this job and attempt alone. Law: one attempt at a time. To issue the next one, or to revoke, ends whatever
came before: a predecessor that was frozen and wakes finds its token good for nothing. Checking and doing happen under
one lock (`held`), so that nothing which began before an end happens after it.
"""

import hashlib
import hmac
import secrets
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common_lib.exceptions import AuthenticationError
from common_lib.storage import check_there_now
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.guarded_reading import guarded

GRANT_FILE = "worker_grant.json"
BEGINS_ONCE, BEGINS = "mlj1_", "mljt_"
"""Of one-time tokens, and of those that they are exchanged for."""


class GrantRecord(Contract):
    """`worker_grant.json`; `token` is empty until the exchange."""

    attempt: int
    one_time: str
    token: str = ""


class WorkerGrant:
    """The grant of one job; for any threads of the control plane, which alone writes it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / GRANT_FILE
        self._job_id = folder.name
        self._lock = threading.RLock()
        self._read: tuple[tuple[int, int], GrantRecord | None] | None = None

    def issue(self, attempt: int) -> str:
        """A one-time token for this attempt; every token before it ends. On disk when this returns."""
        one_time = BEGINS_ONCE + secrets.token_urlsafe(32)
        with self._lock:
            self._write(GrantRecord(attempt=attempt, one_time=_digest(one_time)))
        return one_time

    def exchange(self, one_time: str, nonce: str) -> tuple[str, int]:
        """The attempt's token and its number; the same again for the same nonce, whose answer may have been lost.

        Raises:
            AuthenticationError: it is no one-time token of the newest attempt, or somebody else has used it.
        """
        token = BEGINS + _made(one_time, nonce)
        with self._lock:
            record = self._record()
            if record is None or not hmac.compare_digest(record.one_time, _digest(one_time)):
                raise ended(self._job_id)
            if not record.token:
                record = record.model_copy(update={"token": _digest(token)})
                self._write(record)
            if not hmac.compare_digest(record.token, _digest(token)):
                raise AuthenticationError(
                    f"this one-time token of job {self._job_id} was used already; a worker that begins needs a new one"
                )
            return token, record.attempt

    def check(self, token: str) -> int:
        """The attempt that this token is of; raises AuthenticationError where it is not the newest one's."""
        with self._lock:
            record = self._record()
            if record is None or not record.token or not hmac.compare_digest(record.token, _digest(token)):
                raise ended(self._job_id)
            return record.attempt

    @contextmanager
    def held(self, token: str) -> Iterator[int]:
        """`check`, and no other attempt begins meanwhile."""
        with self._lock:
            yield self.check(token)

    @property
    def is_given(self) -> bool:
        """Whether a worker elsewhere has the job, or is to begin at it."""
        return self._file.exists()

    def revoke(self) -> None:
        """From now on no worker elsewhere may do anything; a `stat` where none was ever granted."""
        with self._lock:
            self._file.unlink(missing_ok=True)

    def _write(self, record: GrantRecord) -> None:
        write_whole(self._file, record.model_dump_json().encode(), durable=True, mode=0o600)
        self._read = None

    def _record(self) -> GrantRecord | None:
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            check_there_now(self._file)
            return None
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, guarded(self._file, GrantRecord.model_validate_json)
        return self._read[1]


def ended(job_id: str) -> AuthenticationError:
    """What whoever has no token of the newest attempt is told, whether there is such a job or not."""
    return AuthenticationError(
        f"this token is not of the attempt that works at job {job_id} now; its worker has to end"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _made(one_time: str, nonce: str) -> str:
    made = hmac.new(one_time.encode(), nonce.encode(), hashlib.sha256).digest()
    return urlsafe_b64encode(made).decode().rstrip("=")
