"""Promises beyond order and accounting: leases, policies, expiry, losses by symbol, letters that go back."""

import time

import pytest

from common_lib.exceptions import (
    ConflictError,
    DataValidationError,
    DeadLetterNotFoundError,
    LeaseLostError,
    QueueFullError,
)
from ml_workbench_service.contracts.queue import (
    LATENCY_BOUNDS_MS,
    DeadLetter,
    GroupAccounting,
    Lease,
    LeaseHolder,
    Outgoing,
    shard_of,
    stream_names,
)
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue, ShardedQueue, move_to
from ml_workbench_service.integrations.prediction_queue.accounting import SLOTS
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, every_redis_server_fixture, prediction_queue_fixture  # noqa: F401

PAIRS = ("EUR/USD", "GBP/USD", "USD/JPY", "AUD/USD", "USD/CHF", "NZD/USD")


def accounting_of(queue: RedisPredictionQueue | ShardedQueue, group: str = "g") -> GroupAccounting:
    return next(accounting for accounting in queue.accounting().groups if accounting.group == group)


def granted(answer: Lease | LeaseHolder) -> Lease:
    assert isinstance(answer, Lease)
    return answer


def ids(queue: RedisPredictionQueue, group: str = "g", lease: Lease | None = None) -> list[str]:
    deliveries = queue.consume(group, "a", block_ms=0, lease=lease)
    return [delivery.record.prediction_id for delivery in deliveries if delivery.record is not None]


def test_a_lease_has_one_holder_and_a_higher_term_each_time(prediction_queue: RedisPredictionQueue) -> None:
    first = granted(prediction_queue.acquire("g", "one", known_term=4))
    assert first.term == 5
    holder = prediction_queue.acquire("g", "two")
    assert isinstance(holder, LeaseHolder)
    assert (holder.owner, holder.term) == ("one", 5)
    assert granted(prediction_queue.acquire("g", "one")).term == 6, "a holder that lost touch takes it anew"
    prediction_queue.release(first)  # of a term that has passed: nothing happens
    assert isinstance(prediction_queue.acquire("g", "two"), LeaseHolder)
    prediction_queue.release(Lease("g", "one", 6))
    assert granted(prediction_queue.acquire("g", "two")).term == 7


def test_a_lease_is_taken_over_only_from_a_holder_that_does_not_beat(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    lease = granted(prediction_queue.acquire("g", "one"))
    seen = prediction_queue.acquire("g", "two")
    assert isinstance(seen, LeaseHolder)
    prediction_queue.consume("g", "a", block_ms=0, lease=lease)
    still = prediction_queue.acquire("g", "two", instead_of=seen)
    assert isinstance(still, LeaseHolder), "the holder had beaten meanwhile"
    taken = granted(prediction_queue.acquire("g", "two", instead_of=still))
    assert taken.term == lease.term + 1


def test_whoever_lost_the_lease_reads_settles_and_gives_up_nothing(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(number) for number in range(3)])
    old = granted(prediction_queue.acquire("g", "one"))
    (delivery,) = prediction_queue.consume("g", "a", count=1, block_ms=0, lease=old)
    new = granted(prediction_queue.acquire("g", "one"))
    with pytest.raises(LeaseLostError):
        prediction_queue.consume("g", "a", block_ms=0, lease=old)
    with pytest.raises(LeaseLostError):
        prediction_queue.ack("g", [delivery.entry_id], lease=old)
    with pytest.raises(LeaseLostError):
        prediction_queue.dead_letter("g", delivery, "no", lease=old)
    assert accounting_of(prediction_queue).pending == 1
    assert ids(prediction_queue, lease=new) == ["EUR/USD-0"], "a new lease begins with what is pending"
    assert ids(prediction_queue, lease=new) == ["EUR/USD-1", "EUR/USD-2"]


def test_refused_records_are_counted_by_symbol_and_known_ones_are_not_refused(
    prediction_queue: RedisPredictionQueue,
) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(number) for number in range(99)])
    last = [prediction_record(99), prediction_record(5), prediction_record(0, symbol="GBP/USD"), prediction_record(100)]
    done = prediction_queue.enqueue([Outgoing(record, "", time.time()) for record in last], full="reject")
    assert (done.num_handled, done.refused) == (4, ("GBP/USD-0", "EUR/USD-100"))
    accounting = prediction_queue.accounting()
    assert (accounting.length, accounting.refused_by_symbol) == (100, {"GBP/USD": 1, "EUR/USD": 1})
    assert (accounting.groups[0].enqueued, accounting.groups[0].dropped_oldest, accounting.groups[0].balance) == (
        100,
        0,
        0,
    )


def test_what_is_dropped_is_named_and_counted_by_symbol(redis_server: RedisForTests) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=4)
    queue.create_group("g")
    records = [prediction_record(number, symbol=PAIRS[number % 2]) for number in range(4)]
    queue.publish(records)
    done = queue.enqueue([Outgoing(prediction_record(9, symbol="USD/JPY"), "", time.time())] * 1)
    assert done.evicted == ("EUR/USD-0",)
    queue.publish([prediction_record(number) for number in range(10, 12)])
    found = {symbol: accounting.dropped_oldest for symbol, accounting in accounting_of(queue).by_symbol.items()}
    assert found == {"EUR/USD": 2, "GBP/USD": 1}
    queue.close()


def test_entries_that_waited_too_long_expire_unseen_and_pending_ones_do_not(redis_server: RedisForTests) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=6, ttl_s=0.2)
    for group in ("g", "other"):
        queue.create_group(group)
    queue.publish([prediction_record(number) for number in range(2)])
    (taken,) = queue.consume("g", "a", count=1, block_ms=0)
    time.sleep(0.25)
    assert ids(queue) == [], "the second one was too old"
    queue.publish([prediction_record(2)])
    (young,) = queue.consume("g", "a", block_ms=0)
    assert queue.ack("g", [taken.entry_id]) == 1, "what is in a consumer's hands may have been applied"
    assert queue.ack("g", [young.entry_id]) == 1
    queue.publish([prediction_record(number) for number in range(3, 9)])  # what only the other group needs gives way
    accounting = {group: accounting_of(queue, group) for group in ("g", "other")}
    assert (accounting["g"].expired, accounting["g"].acked, accounting["g"].dropped_oldest) == (1, 2, 0)
    assert (accounting["other"].expired, accounting["other"].dropped_oldest) == (2, 1)
    assert all(each.balance == 0 for each in accounting.values())
    assert accounting["other"].by_symbol["EUR/USD"].expired == 2
    queue.close()


@pytest.fixture
def with_letter(prediction_queue: RedisPredictionQueue) -> tuple[RedisPredictionQueue, DeadLetter]:
    """Two groups; the first gave up the second of three records, and both acknowledged the rest."""
    for group in ("g", "other"):
        prediction_queue.create_group(group)
    prediction_queue.publish([prediction_record(number) for number in range(3)])
    for group in ("g", "other"):
        deliveries = prediction_queue.consume(group, "a", block_ms=0)
        if group == "g":
            prediction_queue.dead_letter("g", deliveries.pop(1), "no costs")
        prediction_queue.ack(group, [delivery.entry_id for delivery in deliveries])
    (letter,) = prediction_queue.dead_letters.after(None, limit=5)
    return prediction_queue, letter


def test_a_requeued_letter_comes_back_to_its_group_alone(
    with_letter: tuple[RedisPredictionQueue, DeadLetter],
) -> None:
    queue, letter = with_letter
    assert (letter.prediction_id, letter.reason, letter.symbol) == ("EUR/USD-1", "no costs", "EUR/USD")
    assert letter.fields["model_id"] == letter.model_id == "model"
    back = queue.dead_letters.requeue(letter.id)
    assert back.group == "g"
    assert queue.dead_letters.after(None, limit=5) == []
    queue.publish([prediction_record(3)])
    assert ids(queue) == ["EUR/USD-1", "EUR/USD-3"]
    assert ids(queue, "other") == ["EUR/USD-3"], "the other group had applied it"
    for group in ("g", "other"):
        accounting = accounting_of(queue, group)
        assert (accounting.enqueued, accounting.balance) == (5, 0)
    assert accounting_of(queue).by_symbol["EUR/USD"].dead_lettered == 1
    with pytest.raises(DeadLetterNotFoundError, match="dead-letters"):
        queue.dead_letters.requeue(letter.id)


def test_a_letter_that_fails_again_is_a_letter_again(with_letter: tuple[RedisPredictionQueue, DeadLetter]) -> None:
    queue, letter = with_letter
    queue.dead_letters.requeue(letter.id)
    (delivery,) = queue.consume("g", "a", block_ms=0)
    queue.dead_letter("g", delivery, "still no costs")
    (again,) = queue.dead_letters.after(None, limit=5)
    assert (again.reason, again.group, again.prediction_id) == ("still no costs", "g", "EUR/USD-1")
    queue.dead_letters.requeue(again.id)
    assert ids(queue) == ["EUR/USD-1"]
    assert accounting_of(queue).balance == 0


def test_nothing_is_evicted_for_a_letter_and_none_goes_to_a_group_that_ended(
    with_letter: tuple[RedisPredictionQueue, DeadLetter],
) -> None:
    queue, letter = with_letter
    queue.publish([prediction_record(number) for number in range(10, 110)])
    with pytest.raises(QueueFullError):
        queue.dead_letters.requeue(letter.id)
    queue.remove_group("g")
    with pytest.raises(ConflictError, match="ended"):
        queue.dead_letters.requeue(letter.id)
    queue.dead_letters.discard(letter.id)
    with pytest.raises(DeadLetterNotFoundError):
        queue.dead_letters.discard(letter.id)


def test_a_group_that_ends_releases_what_only_it_needed(prediction_queue: RedisPredictionQueue) -> None:
    for group in ("g", "slow"):
        prediction_queue.create_group(group)
    prediction_queue.publish([prediction_record(number) for number in range(60)])
    taken = prediction_queue.consume("g", "a", count=50, block_ms=0)
    prediction_queue.ack("g", [delivery.entry_id for delivery in taken[:40]])
    assert prediction_queue.accounting().length == 60
    assert prediction_queue.remove_group("slow") == 40
    assert (prediction_queue.accounting().length, accounting_of(prediction_queue).balance) == (20, 0)
    assert prediction_queue.remove_group("slow") == 0
    assert prediction_queue.remove_group("g") == 0
    assert prediction_queue.accounting().length == 20, "the last group's entries stay for the next one"
    prediction_queue.create_group("next")
    assert accounting_of(prediction_queue, "next").enqueued == 20


def test_what_named_no_symbol_is_added_up_over_the_shards(redis_server: RedisForTests) -> None:
    queue = ShardedQueue(redis_server.url, capacity=10, num_shards=2)
    queue.create_group("g")
    client = redis_server.client()
    for shard in queue.shards:
        client.xadd(shard.stream, {"nothing": "of use"})
        (delivery,) = shard.consume("g", "a", block_ms=0)
        shard.dead_letter("g", delivery, delivery.fault)
    client.close()
    assert accounting_of(queue).by_symbol["?"].dead_lettered == 2
    queue.close()


def test_latencies_are_counted_in_the_scripts_slots(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(0)])
    (delivery,) = prediction_queue.consume("g", "a", block_ms=0)
    time.sleep(0.06)
    prediction_queue.ack("g", [delivery.entry_id])
    latency = accounting_of(prediction_queue).latency
    slot = latency.counts.index(1)
    assert (latency.num, latency.bounds_ms, len(latency.counts)) == (1, LATENCY_BOUNDS_MS, len(SLOTS))
    assert latency.bounds_ms[slot - 1] < latency.sum_ms <= latency.bounds_ms[slot]
    assert latency.sum_ms >= 60


def test_symbols_keep_to_their_shard_in_order_and_the_accounting_is_a_sum(redis_server: RedisForTests) -> None:
    queue = ShardedQueue(redis_server.url, capacity=10, num_shards=3)
    queue.create_group("g")
    records = [prediction_record(number, symbol=pair) for number in range(4) for pair in PAIRS]
    places = {pair: shard_of(pair, 3) for pair in PAIRS}
    fullest = max(sum(place == each for place in places.values()) for each in range(3))
    assert (len(set(places.values())), fullest) == (3, 3), "the pairs of this test are spread"
    outgoing = [Outgoing(record, "", time.time()) for record in records]
    done, waiting = queue.enqueue(outgoing, full="wait")
    assert (done.num_handled, len(waiting)) == (22, 2)
    for place, shard in enumerate(queue.shards):
        assert shard.stream == stream_names(3)[place]
        found = [each.record for each in shard.consume("g", "a", block_ms=0) if each.record is not None]
        assert {each.symbol for each in found} == {pair for pair in PAIRS if places[pair] == place}
        for pair in PAIRS:
            numbers = [each.as_of for each in found if each.symbol == pair]
            assert numbers == sorted(numbers)
    summed = queue.accounting()
    assert (
        summed.length,
        accounting_of(queue).enqueued,
        accounting_of(queue).pending,
        accounting_of(queue).balance,
    ) == (
        22,
        22,
        22,
        0,
    )
    assert queue.remove_group("g") == 0
    queue.close()


def test_letters_of_several_shards_are_paged_and_named(redis_server: RedisForTests) -> None:
    queue = ShardedQueue(redis_server.url, capacity=50, num_shards=2)
    queue.create_group("g")
    queue.enqueue([Outgoing(prediction_record(0, symbol=pair), "", time.time()) for pair in PAIRS])
    for shard in queue.shards:
        for delivery in shard.consume("g", "a", block_ms=0):
            shard.dead_letter("g", delivery, "why not")
    letters = queue.dead_letters(None, limit=10)
    assert sorted(str(each.symbol) for each in letters) == sorted(PAIRS)
    paged: list[DeadLetter] = []
    while page := queue.dead_letters(paged[-1].id if paged else None, limit=2):
        paged += page
    assert paged == letters
    assert queue.requeue(letters[-1].id).id == letters[-1].id
    queue.discard(letters[0].id)
    assert len(queue.dead_letters(None, limit=10)) == len(PAIRS) - 2
    for name in ("7.1-0", "1.0-1"):
        with pytest.raises(DeadLetterNotFoundError):
            queue.requeue(name)
    for name in ("first", "\u0661-\u0661"):  # digits of another script are none to the server
        with pytest.raises(DataValidationError, match="dead letter's id"):
            queue.discard(name)
    for name in ("first", "\u0661-\u0661", "7.1-0"):
        with pytest.raises(DataValidationError) as caught:
            queue.dead_letters(name, limit=1)
        assert caught.value.details["errors"][0]["path"] == "query.cursor"
    queue.close()


def test_another_number_of_shards_takes_over_what_waits_and_what_was_given_up(redis_server: RedisForTests) -> None:
    old = ShardedQueue(redis_server.url, capacity=50, num_shards=2)
    old.create_group("g")
    records = [prediction_record(number, symbol=pair) for number in range(3) for pair in PAIRS]
    old.enqueue([Outgoing(record, f"c-{record.prediction_id}", time.time()) for record in records])
    for shard in old.shards:
        first = shard.consume("g", "a", count=1, block_ms=0)
        shard.dead_letter("g", first[0], "why not")
    new = ShardedQueue(redis_server.url, capacity=50)
    assert move_to(new, redis_server.url) == len(records) - 2
    assert move_to(new, redis_server.url) == 0
    new.create_group("g")
    deliveries = new.shards[0].consume("g", "a", count=50, block_ms=0)
    assert all(each.record and each.correlation_id == f"c-{each.record.prediction_id}" for each in deliveries)
    for pair in PAIRS:
        moments = [each.record.as_of for each in deliveries if each.record and each.record.symbol == pair]
        assert moments == sorted(moments)
    assert len(deliveries) == len(records) - 2
    assert len(new.dead_letters(None, limit=9)) == 2
    client = redis_server.client()
    assert client.keys("*of2*") == []
    client.close()
    old.close()
    new.close()


def test_the_accounting_is_read_while_writes_are_paused_where_the_server_can(redis_server: RedisForTests) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=50)
    queue.create_group("g")
    queue.publish([prediction_record(0)])
    client = redis_server.client()
    version = int(client.info("server")["redis_version"].split(".")[0])
    client.execute_command("CLIENT", "PAUSE", 1500, "WRITE")
    began = time.monotonic()
    assert accounting_of(queue).enqueued == 1
    waited_s = time.monotonic() - began
    assert waited_s < 1.0 if version >= 7 else waited_s < 5.0
    client.close()
    queue.close()
