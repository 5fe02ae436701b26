"""Probes of outside things: what is away says so, with the moment at which it was last well."""

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.api.app_state import LastGood, QueueThreads
from ml_workbench_service.api.door.probes import fault_of_server
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.integrations.prediction_queue.connection import persistence_of
from tests.service_process import free_port

WELL = {"aof_enabled": 1, "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok"}


@pytest.mark.parametrize(
    ("told", "is_failing", "words"),
    [
        (WELL, False, "is written"),
        ({"aof_enabled": 0}, False, "no append-only file"),
        ({**WELL, "aof_last_write_status": "err"}, True, "last write failed"),
        ({**WELL, "aof_last_bgrewrite_status": "err"}, True, "last rewrite failed"),
    ],
)
def test_the_append_only_file_is_told_of(told: dict[str, object], is_failing: bool, words: str) -> None:
    kept = persistence_of(told)
    assert (kept.is_failing, words in kept.said) == (is_failing, True)


def test_a_thing_that_goes_away_keeps_its_last_good_moment() -> None:
    moments = iter(datetime(2030, 3, 6, tzinfo=UTC) + timedelta(minutes=number) for number in range(9))
    last_good = LastGood(lambda: next(moments))
    well, down = OutsideThing(mode="remote", state="ok"), OutsideThing(mode="remote", state="down")
    assert last_good.noted({"redis": down})["redis"].last_ok_at is None
    first = last_good.noted({"redis": well})["redis"].last_ok_at
    assert first == datetime(2030, 3, 6, 0, 1, tzinfo=UTC)
    assert last_good.noted({"redis": down})["redis"].last_ok_at == first
    off = OutsideThing(mode="off", state="disabled")
    assert last_good.noted({"redis": off})["redis"].last_ok_at is None


@pytest.fixture
def statuses() -> Iterator[tuple[str, list[int]]]:
    """A server's address, and what it answers next."""
    said: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(said.pop())
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", said
        server.shutdown()
        thread.join()


def test_a_tracking_server_is_there_whatever_it_wants_of_a_stranger(statuses: tuple[str, list[int]]) -> None:
    address, said = statuses
    for status, is_there in ((200, True), (401, True), (404, True), (503, False)):
        said.append(status)
        assert (fault_of_server(address) == "") is is_there
    assert fault_of_server(f"http://127.0.0.1:{free_port()}") == "ConnectionRefusedError"


async def test_a_queue_whose_answer_drips_holds_nobody_for_longer_than_the_patience() -> None:
    threads, released = QueueThreads(1, patience_s=0.05), threading.Event()
    try:
        for _ in range(2):  # the second one waits behind the first
            with pytest.raises(UnavailableError, match="did not answer"):
                await threads.run(released.wait)
        released.set()
        assert await threads.run(lambda: 3) == 3
        with pytest.raises(TimeoutError, match="of its own"):
            await threads.run(_late)
    finally:
        released.set()
        threads.close()


def _late() -> None:
    raise TimeoutError("of its own")
