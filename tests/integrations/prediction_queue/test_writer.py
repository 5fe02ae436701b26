"""The writer of an event loop: what it sends is what the queue's own `enqueue` sends, through faults of every kind."""

import asyncio
import json
import os
import signal
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from common_lib.exceptions import UnavailableError
from common_lib.logging import configure_logging
from ml_workbench_service.contracts.queue import Outgoing
from ml_workbench_service.integrations.prediction_queue import QueueWriter, RedisPredictionQueue, ShardedQueue
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, every_redis_server_fixture, prediction_queue_fixture  # noqa: F401

PAIRS = ("EUR/USD", "GBP/USD", "USD/JPY", "AUD/USD", "USD/CHF", "NZD/USD")
PATIENCE_S = 30.0


def outgoing(first: int, num: int, *, symbol: str = "EUR/USD") -> list[Outgoing]:
    return [
        Outgoing(prediction_record(number, symbol=symbol), f"c{number}", time.time())
        for number in range(first, first + num)
    ]


def names(items: list[Outgoing]) -> list[str]:
    return [item.record.prediction_id for item in items]


def entries(server: RedisForTests, stream: str) -> list[dict[bytes, bytes]]:
    with server.client() as client:
        return [fields for _, fields in client.xrange(stream)]  # type: ignore[union-attr]


async def test_both_ways_into_the_queue_write_the_same_entries(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    batch = [
        *outgoing(0, 3),
        Outgoing(prediction_record(3, metadata={"data_source": "a\x1eb"}), "c", 0.0),
        Outgoing(prediction_record(4, price=None), "", 0.0),
    ]
    writer = QueueWriter(redis_server.url, capacity=100, full="drop_oldest")
    done, left = await writer.enqueue(batch)
    assert (done.num_handled, done.refused, done.evicted, left) == (5, (), (), [])
    by_writer = entries(redis_server, prediction_queue.stream)
    redis_server.client().flushall()
    assert await asyncio.to_thread(prediction_queue.enqueue, batch) == done
    by_queue = entries(redis_server, prediction_queue.stream)
    for each in (*by_writer, *by_queue):
        del each[b"enqueued_at"]
    assert by_writer == by_queue
    assert len(by_writer) == 5
    await writer.close()


@pytest.mark.parametrize("num_shards", [1, 3])
async def test_thousands_at_once_keep_each_symbols_order_on_every_shard(
    redis_server: RedisForTests, num_shards: int
) -> None:
    queue = ShardedQueue(redis_server.url, capacity=2000, num_shards=num_shards)
    writer = queue.writer()
    batch = [Outgoing(prediction_record(n, symbol=PAIRS[n % len(PAIRS)]), "", 0.0) for n in range(1000)]
    done, left = await writer.enqueue(batch)
    assert (done.num_handled, left) == (1000, [])
    found = [fields for shard in queue.shards for fields in entries(redis_server, shard.stream)]
    for pair in PAIRS:
        came = [each[b"prediction_id"].decode() for each in found if each[b"symbol"] == pair.encode()]
        assert came == [name for name in names(batch) if name.startswith(pair)]
    assert len(found) == 1000
    assert all(shard.accounting().length > 0 for shard in queue.shards)
    await writer.close()
    queue.close()


async def test_what_has_no_room_waits_or_is_refused_and_what_gives_way_is_named(redis_server: RedisForTests) -> None:
    queue = ShardedQueue(redis_server.url, capacity=2)
    batch = outgoing(0, 300)
    waiting, refusing, evicting = (queue.writer(mode) for mode in ("wait", "reject", "drop_oldest"))
    done, left = await waiting.enqueue(batch)
    assert (done.num_handled, names(left)) == (2, names(batch[2:]))
    done, left = await refusing.enqueue(batch[:4])
    assert (done.num_handled, done.refused, left) == (4, tuple(names(batch[2:4])), [])
    done, left = await evicting.enqueue(batch[2:3])
    assert (done.evicted, left) == ((batch[0].record.prediction_id,), [])
    for each in (waiting, refusing, evicting):
        await each.close()
    queue.close()


async def test_a_server_that_forgot_the_script_or_was_started_again_is_told_anew(redis_server: RedisForTests) -> None:
    queue = ShardedQueue(redis_server.url, capacity=100, num_shards=3)
    writer = queue.writer()
    batch = [Outgoing(prediction_record(n, symbol=PAIRS[n % len(PAIRS)]), "", 0.0) for n in range(12)]
    await writer.enqueue(batch)
    redis_server.client().script_flush()
    done, _ = await writer.enqueue(batch)
    assert done.num_handled == 12
    assert queue.accounting().length == 12
    await asyncio.to_thread(redis_server.kill)
    with pytest.raises(UnavailableError, match="Cannot publish to the prediction queue"):
        await writer.enqueue(batch)
    await asyncio.to_thread(redis_server.start)
    done, _ = await writer.enqueue(batch)
    assert done.num_handled == 12
    assert queue.accounting().length == 12, "the queue knows what it has"
    await writer.close()
    queue.close()


async def test_a_late_answer_is_never_taken_for_the_next_ones(redis_server: RedisForTests) -> None:
    queue = ShardedQueue(redis_server.url, capacity=100)
    writer = QueueWriter(redis_server.url, capacity=100, full="drop_oldest", timeout_s=1.0)
    await writer.enqueue(outgoing(0, 1))
    assert redis_server.embedded.pid is not None
    os.kill(redis_server.embedded.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError, match="no answer in"):
            await writer.enqueue(outgoing(1, 5))
        given_up = asyncio.create_task(writer.enqueue(outgoing(1, 5)))
        await asyncio.sleep(0.1)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
    finally:
        os.kill(redis_server.embedded.pid, signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            done, _ = await writer.enqueue(outgoing(6, 2))
            break
        except UnavailableError:
            assert time.monotonic() < deadline
    assert done.num_handled == 2
    accounting = queue.accounting()
    assert accounting.length == 8
    await writer.close()
    queue.close()


async def test_what_one_stream_took_is_logged_where_another_refuses(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    configure_logging(level="INFO", log_dir=tmp_path / "logs", style="json", to_stderr=False)
    queue = ShardedQueue(redis_server.url, capacity=100, num_shards=3)
    writer = queue.writer()
    batch = [Outgoing(prediction_record(n, symbol=PAIRS[n % len(PAIRS)]), "", 0.0) for n in range(12)]
    with redis_server.client() as client:
        client.set(queue.shards[0].stream, "no stream")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        await writer.enqueue(batch)
    with redis_server.client() as client:
        client.delete(queue.shards[0].stream)
    taken = sum(shard.accounting().length for shard in queue.shards)
    assert 0 < taken < 12
    await writer.enqueue(batch)
    await writer.close()
    queue.close()
    lines = (tmp_path / "logs" / "queue_processing.log").read_text("utf-8").splitlines()
    said = [json.loads(line)["message"] for line in lines]
    assert (said.count("enqueue"), said.count("duplicate")) == (12, taken)


async def test_a_script_that_may_not_be_loaded_is_said(redis_server: RedisForTests) -> None:
    with redis_server.client() as client:
        client.acl_setuser("producer", enabled=True, nopass=True, keys="*", commands=["+@all", "-script"])
    writer = QueueWriter(redis_server.url.replace("unix://", "unix://producer:x@"), capacity=100, full="drop_oldest")
    with pytest.raises(UnavailableError, match="NoPermission"):
        await writer.enqueue(outgoing(0, 1))
    await writer.close()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_was_reset_while_it_rested_is_opened_again(
    redis_server: RedisForTests, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    path = redis_server.url.removeprefix("unix://")

    class Resetting(socketserver.BaseRequestHandler):
        """Passes bytes on to the server until it is told to reset."""

        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(path)
                passing = threading.Thread(target=self.back, args=(server,), daemon=True)
                passing.start()
                while not cut.is_set():
                    self.request.settimeout(0.01)
                    with suppress(TimeoutError):
                        received = self.request.recv(65536)
                        if not received:
                            break  # the client's own end
                        server.sendall(received)
                server.shutdown(socket.SHUT_RDWR)
                passing.join()  # it reads the end before its socket is closed
            if not cut.is_set():
                return
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()
            cut.clear()

        def back(self, server: socket.socket) -> None:
            with suppress(OSError):  # the client may be gone
                while received := server.recv(65536):
                    self.request.sendall(received)

    cut = threading.Event()

    async def run(port: int) -> None:
        writer = QueueWriter(f"redis://127.0.0.1:{port}/0", capacity=100, full="drop_oldest")
        await writer.enqueue(outgoing(0, 1))
        cut.set()
        while cut.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="ConnectionError"):
            await writer.enqueue(outgoing(1, 1))
        done, _ = await writer.enqueue(outgoing(1, 1))
        assert done.num_handled == 1
        await writer.close()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Resetting) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        loop = make_loop()
        try:
            loop.run_until_complete(run(proxy.server_address[1]))
        finally:
            loop.close()
            proxy.shutdown()


async def test_a_replica_is_left_for_whatever_the_name_leads_to_next(redis_server: RedisForTests) -> None:
    writer = QueueWriter(redis_server.url, capacity=100, full="drop_oldest")
    await writer.enqueue(outgoing(0, 1))
    server = redis_server.client()
    server.replicaof("127.0.0.1", "1")
    with pytest.raises(UnavailableError, match=r"read only|READONLY"):
        await writer.enqueue(outgoing(1, 1))
    assert not writer._connection.is_connected
    server.replicaof("NO", "ONE")
    done, _ = await writer.enqueue(outgoing(1, 1))
    assert done.num_handled == 1
    await writer.close()


async def test_a_record_that_cannot_be_written_harms_no_later_one(redis_server: RedisForTests) -> None:
    writer = QueueWriter(redis_server.url, capacity=100, full="drop_oldest")
    bad = Outgoing(prediction_record(0, metadata={"data_source": "caf\udce9"}), "", 0.0)
    with pytest.raises((UnicodeError, TypeError)):
        await writer.enqueue([bad])
    done, _ = await writer.enqueue(outgoing(1, 1))
    assert done.num_handled == 1
    await writer.close()


async def test_every_record_is_logged_in_its_moment_a_little_later(redis_server: RedisForTests, tmp_path: Path) -> None:
    configure_logging(level="INFO", log_dir=tmp_path / "logs", style="json", to_stderr=False)
    file = tmp_path / "logs" / "queue_processing.log"
    writer = QueueWriter(redis_server.url, capacity=2, full="drop_oldest")
    for number in range(3):
        await writer.enqueue(outgoing(number, 1))
        await asyncio.sleep(0.01)
    answered_at = time.time()
    deadline = time.monotonic() + PATIENCE_S
    while file.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await writer.enqueue([*outgoing(2, 1), *outgoing(3, 1)])
    await writer.close()
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    said = [(each["message"], each["prediction_id"]) for each in lines]
    assert said[:4] == [*(("enqueue", f"EUR/USD-{number}") for number in range(3)), ("drop_oldest", "EUR/USD-0")]
    assert said[4:] == [("duplicate", "EUR/USD-2"), ("enqueue", "EUR/USD-3"), ("drop_oldest", "EUR/USD-1")]
    times = [each["time"] for each in lines[:3]]
    assert len(set(times)) == 3
    assert times == sorted(times)
    latest = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(answered_at + 0.001))
    assert times[-1] <= f"{latest}.999Z"
    assert [each["correlation_id"] for each in lines[:3]] == ["c0", "c1", "c2"]
    assert all(each["latency_ms"] >= 0 for each in lines[:3])


async def test_a_flood_is_logged_without_waiting(redis_server: RedisForTests, tmp_path: Path) -> None:
    configure_logging(level="INFO", log_dir=tmp_path / "logs", style="json", to_stderr=False)
    writer = QueueWriter(redis_server.url, capacity=1000, full="drop_oldest")
    await writer.enqueue(outgoing(0, 256))
    assert len((tmp_path / "logs" / "queue_processing.log").read_bytes().splitlines()) == 256
    await writer.close()
