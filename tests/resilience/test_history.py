"""The server's log of effects read back: each way in which an entry can end, told apart; and producers' histories."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM, Outgoing
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.resilience.children import PrivateRedis
from ml_workbench_service.resilience.history import GroupHistory, ProducerHistory, ServerHistory
from ml_workbench_service.resilience.server_log import added
from ml_workbench_service.resilience.synthetic import SyntheticPredictions, number_of, prediction_id

GROUPS = [(PREDICTIONS_STREAM, "agent:a"), (PREDICTIONS_STREAM, "agent:b")]
RECORDS = SyntheticPredictions(0, num_symbols=2, num_records=50)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateRedis]:
    private = PrivateRedis(tmp_path / "server", fsync="always", environment={})
    private.start()
    yield private
    private.stop()


@pytest.fixture
def queue(server: PrivateRedis) -> Iterator[RedisPredictionQueue]:
    opened = RedisPredictionQueue(server.url, capacity=4)
    for _, group in GROUPS:
        opened.create_group(group)
    yield opened
    opened.close()


def put(queue: RedisPredictionQueue, *numbers: int) -> None:
    queue.enqueue([Outgoing(RECORDS.record(number), "", 0.0) for number in numbers])


def history_of(server: PrivateRedis) -> ServerHistory:
    def is_as_offered(identifier: str, fields: Mapping[bytes, bytes]) -> bool:
        return fields[b"price"].decode() == repr(RECORDS.record(number_of(identifier) or 0).price)

    return ServerHistory.read(server.folder, GROUPS, is_as_offered=is_as_offered)


def outcomes(history: ServerHistory, place: int) -> dict[str, str]:
    group: GroupHistory = history.groups[GROUPS[place]]
    return {history.entries[each].prediction_id: outcome for each, outcome in sorted(group.outcomes.items())}


def test_every_end_of_an_entry_is_told_apart(server: PrivateRedis, queue: RedisPredictionQueue) -> None:
    put(queue, 0, 1, 2)
    first = queue.consume("agent:a", "x", count=3, block_ms=0)
    queue.ack("agent:a", [first[0].entry_id])
    queue.dead_letter("agent:a", first[1], "bad")
    put(queue, 3, 4, 5)  # one too many beside record-2, which a has in hand: record-0, done for a, gives way
    put(queue, 6, 7)  # record-1, dead for a, and record-3, which nobody has read
    history = history_of(server)
    assert outcomes(history, 0) == {"record-0": "acked", "record-1": "dead_lettered", "record-3": "dropped_oldest"}
    assert outcomes(history, 1) == dict.fromkeys(("record-0", "record-1", "record-3"), "dropped_oldest")
    assert [letter.reason for letter in history.dead_letters] == ["bad"]
    assert [entry.is_as_offered for entry in history.entries] == [True] * 8
    assert all(not group.faults for group in history.groups.values())
    for place, (_, name) in enumerate(GROUPS):
        accounting = next(each for each in queue.accounting().groups if each.group == name)
        group = history.groups[GROUPS[place]]
        assert (accounting.enqueued, accounting.acked, accounting.dropped_oldest, accounting.dead_lettered) == (
            len(group.members),
            group.count("acked"),
            group.count("dropped_oldest"),
            group.count("dead_lettered"),
        )


def test_entries_that_expired_are_told_apart(server: PrivateRedis, queue: RedisPredictionQueue) -> None:
    put(queue, 0, 1)
    hasty = RedisPredictionQueue(server.url, capacity=4, ttl_s=0.001)
    while queue.accounting().oldest_age_s == 0:
        pass
    assert hasty.consume("agent:a", "x", block_ms=5) == []
    hasty.close()
    history = history_of(server)
    assert outcomes(history, 0) == {"record-0": "expired", "record-1": "expired"}
    assert outcomes(history, 1) == {}


def test_what_a_flush_wiped_out_is_its_doing_until_the_group_is_back(
    server: PrivateRedis, queue: RedisPredictionQueue
) -> None:
    put(queue, 0, 1)
    server.client().flushall()
    put(queue, 2, 3, 4, 5, 6)  # nobody's group is there: record-2 gives way unseen
    queue.create_group("agent:a")
    put(queue, 7)
    history = history_of(server)
    assert outcomes(history, 0) == dict.fromkeys(("record-0", "record-1", "record-2"), "flushed") | {
        "record-3": "dropped_oldest"
    }
    members = {history.entries[place].prediction_id for place in history.groups[GROUPS[0]].members}
    assert members == {prediction_id(number) for number in range(3, 8)}


def test_a_server_killed_with_minus_nine_has_every_acknowledged_record(
    server: PrivateRedis, queue: RedisPredictionQueue
) -> None:
    put(queue, 0, 1, 2)
    server.kill()
    assert [entry.prediction_id for entry in history_of(server).entries] == ["record-0", "record-1", "record-2"]
    server.start()
    with pytest.raises(UnavailableError):
        put(queue, 2)  # on the connection of before
    put(queue, 2, 3)
    assert [entry.prediction_id for entry in history_of(server).entries][-1] == "record-3"


def test_a_tampered_entry_is_not_as_offered(server: PrivateRedis, queue: RedisPredictionQueue) -> None:
    tampered = RECORDS.record(0).model_copy(update={"price": 9.0})
    queue.enqueue([Outgoing(tampered, "", 0.0)])
    assert [entry.is_as_offered for entry in history_of(server).entries] == [False]


@pytest.mark.parametrize("options", [(), (b"NOMKSTREAM",), (b"MAXLEN", b"=", b"10"), (b"MAXLEN", b"10")])
def test_an_entry_is_taken_apart_whatever_its_options(options: tuple[bytes, ...]) -> None:
    entry = added((b"XADD", b"stream", *options, b"1-1", b"field", b"value"))
    assert (entry.stream, entry.entry_id, entry.fields) == ("stream", "1-1", {b"field": b"value"})


def test_a_producers_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "producer.jsonl"
    file.write_text('{"offered": 8, "late_ms": [0.1]}\n{"acked": [5, 6], "refused": [7]}\n{"acked": [8')
    history = ProducerHistory.read(file, first=5)
    assert (history.acked, history.refused, history.num_offered, history.ended) == ((5, 6), (7,), 4, False)
