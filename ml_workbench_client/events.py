"""Event stream of a job (server-sent events), which goes on after a lost connection where it stood: Last-Event-ID."""

import json

import httpx

from common_lib.exceptions import PlatformError
from ml_workbench_client import errors, routes
from ml_workbench_client.plans import Plan, do
from ml_workbench_client.sending import NOT_SENT, TRY_AGAIN, Link, read
from ml_workbench_client.wire import Answer, Lines, Open, Pause, ReadLine, Request
from ml_workbench_service.contracts.jobs import JobEvent

FINAL = ("succeeded", "failed", "cancelled")
SILENCE_S = 60.0
"""The service sends a comment every 15 s; a stream that is silent for longer is opened again."""


class EventStream:
    """The events of one job after a number, each once, up to the final one."""

    def __init__(self, link: Link, job_id: str, after: int = 0) -> None:
        self._link = link
        self._job_id = job_id
        self._seen = after
        self._lines: Lines | None = None
        self._num_failures = 0
        self._is_over = False

    def next(self) -> Plan[JobEvent | None]:
        """The next event, once it comes; None after the final one.

        Raises:
            UnavailableError: the stream could not be opened again often enough.
        """
        while not self._is_over:
            event, lost = yield from self._try()
            if event is not None:
                self._num_failures = 0
                self._seen = event.seq
                self._is_over = event.type in FINAL
                return event
            self._lines = None
            self._num_failures += 1
            if self._num_failures > self._link.patience.num_reconnects:
                raise lost
            wait_s = self._link.patience.backoff_s(self._num_failures)
            yield from do(Pause(max(wait_s, lost.retry_after_s or 0.0)))
        return None

    def _try(self) -> Plan[tuple[JobEvent | None, PlatformError]]:
        """An event, or why there is none for now."""
        broke = errors.unreachable(httpx.ReadError("the stream ended"), url=self._link.url, was_sent=True)
        try:
            if self._lines is None:
                opened = yield from do(Open(self._request()))
                if isinstance(opened, Answer):
                    failure = errors.error_of(opened)
                    if opened.status not in TRY_AGAIN:
                        raise failure
                    return None, failure
                self._lines = opened
            return (yield from self._event(self._lines)), broke
        except httpx.TransportError as error:
            was_sent = not isinstance(error, NOT_SENT)
            return None, errors.unreachable(error, url=self._link.url, was_sent=was_sent)

    def _request(self) -> Request:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._seen)}
        return Request(
            routes.JOB_EVENTS, routes.JOB_EVENTS.at(job_id=self._job_id), headers=headers, timeout_s=SILENCE_S
        )

    def _event(self, lines: Lines) -> Plan[JobEvent | None]:
        """The next whole event of an open stream; None at its end. A torn one is asked for again."""
        fields: dict[str, str] = {}
        while (line := (yield from do(ReadLine(lines)))) is not None:
            name, _, value = line.partition(":")
            if line and name:
                fields[name] = fields.get(name, "") + value.removeprefix(" ")
            elif not line and {"id", "event", "data"} <= fields.keys():
                data = json.loads(fields["data"])
                return read(
                    JobEvent, {"seq": int(fields["id"]), "at": data.pop("at"), "type": fields["event"], "data": data}
                )
            elif not line:
                fields = {}
        return None
