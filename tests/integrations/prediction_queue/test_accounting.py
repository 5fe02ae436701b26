"""Queue accounting under random publishing, consuming, acknowledging and killing, beside a model in plain Python."""

import random
from collections import deque

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.queue import Delivery, FullMode
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, every_redis_server_fixture  # noqa: F401

CAPACITY = 6
GROUPS = ("one", "two")


class ModelGroup:
    """What one group's accounting must say."""

    def __init__(self, present: list[int]) -> None:
        self.undelivered = list(present)
        self.pending: list[int] = []
        self.counts = {"enqueued": len(present), "acked": 0, "dropped_oldest": 0, "dead_lettered": 0, "duplicates": 0}
        self.cursor: int | None = -1  # position in the pending list; None: reads new entries

    def needs(self, number: int) -> bool:
        return number in self.undelivered or number in self.pending


class Accounting(RuleBasedStateMachine):
    """Random publishing, consuming, acknowledging, evicting and crashing, beside a model in plain Python."""

    server: RedisForTests

    @initialize()
    def begin(self) -> None:
        client = self.server.client()
        client.flushall()
        client.close()
        self.queue = RedisPredictionQueue(self.server.url, capacity=CAPACITY)
        self.stream: deque[int] = deque()
        self.groups: dict[str, ModelGroup] = {}
        self.known: set[int] = set()
        self.num_refused = 0
        self.next_number = 0
        self.next_kill = 10
        self.entry_ids: dict[int, Delivery] = {}

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()

    @precondition(lambda self: len(self.groups) < len(GROUPS))
    @rule()
    def create_group(self) -> None:
        group = GROUPS[len(self.groups)]
        self.queue.create_group(group)
        self.groups[group] = ModelGroup(list(self.stream))

    @rule(count=st.integers(1, 9), again=st.integers(0, 3), full=st.sampled_from(("drop_oldest", "wait", "reject")))
    def publish(self, count: int, again: int, full: FullMode) -> None:
        numbers = range(max(0, self.next_number - again), self.next_number + count)
        records = [prediction_record(number) for number in numbers]
        try:
            taken = self.queue.publish(records, full=full)
        except UnavailableError:  # the first call after the server was killed: publishing never repeats by itself
            taken = self.queue.publish(records, full=full)
        expected, fresh = 0, []
        room = CAPACITY - self.num_waiting
        for number in numbers:
            if number in self.known:
                for group in self.groups.values():
                    group.counts["duplicates"] += 1
            elif full == "wait" and len(fresh) >= room:
                break
            elif full == "reject" and len(fresh) >= room:
                self.num_refused += 1
                continue
            else:
                fresh.append(number)
            expected += 1
        for start in range(0, len(fresh), CAPACITY):
            self._add(fresh[start : start + CAPACITY])
        assert taken == expected
        self.next_number = max(self.next_number, *self.known, 0)

    @property
    def num_waiting(self) -> int:
        """Entries that count towards the capacity: all but what the fullest hand holds."""
        return len(self.stream) - max((len(group.pending) for group in self.groups.values()), default=0)

    def _add(self, numbers: list[int]) -> None:
        """The oldest entries that nobody has in hand give way; then the new ones come."""
        in_hand = {number for group in self.groups.values() for number in group.pending}
        free = [number for number in self.stream if number not in in_hand]
        for number in free[: max(0, self.num_waiting + len(numbers) - CAPACITY)]:
            self.stream.remove(number)
            for group in self.groups.values():
                if number in group.undelivered:
                    group.undelivered.remove(number)
                    group.counts["dropped_oldest"] += 1
        for number in numbers:
            self.stream.append(number)
            self.known.add(number)
            for group in self.groups.values():
                group.undelivered.append(number)
                group.counts["enqueued"] += 1

    @precondition(lambda self: self.groups)
    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def consume(self, which: int, count: int) -> None:
        name = GROUPS[which % len(self.groups)]
        group = self.groups[name]
        try:
            deliveries = self.queue.consume(name, "consumer", count=count, block_ms=0)
        except UnavailableError:  # the first read after the server was killed
            group.cursor = -1
            deliveries = self.queue.consume(name, "consumer", count=count, block_ms=0)
        expected: list[int] = []
        if group.cursor is not None:
            cursor = group.cursor
            expected = [number for number in group.pending if number > cursor][:count]
            group.cursor = expected[-1] if expected else None
        if not expected:
            expected, group.undelivered = group.undelivered[:count], group.undelivered[count:]
            group.pending += expected
        assert [delivery.record and delivery.record.prediction_id for delivery in deliveries] == [
            f"EUR/USD-{number}" for number in expected
        ]
        self.entry_ids.update(zip(expected, deliveries, strict=True))

    @precondition(lambda self: any(group.pending for group in self.groups.values()))
    @rule(
        which=st.integers(0, 1),
        picks=st.lists(st.integers(0, CAPACITY - 1), min_size=1, max_size=4),
        dead=st.booleans(),
        old=st.booleans(),
    )
    def acknowledge(self, which: int, picks: list[int], dead: bool, old: bool) -> None:
        name = GROUPS[which % len(self.groups)]
        group = self.groups[name]
        candidates = sorted(self.entry_ids) if old or not group.pending else group.pending
        numbers = [candidates[-1 - pick % len(candidates)] for pick in picks[: 1 if dead else None]]
        if dead:
            for number in numbers:
                self.queue.dead_letter(name, self.entry_ids[number], "test")
        else:
            self.queue.ack(name, [self.entry_ids[number].entry_id for number in numbers])
        for number in numbers:
            if number in group.pending:
                group.pending.remove(number)
                group.counts["dead_lettered" if dead else "acked"] += 1
                if number in self.stream and not any(other.needs(number) for other in self.groups.values()):
                    self.stream.remove(number)

    @rule()
    def restart_consumers(self) -> None:
        self.queue.close()
        self.queue = RedisPredictionQueue(self.server.url, capacity=CAPACITY)
        for group in self.groups.values():
            group.cursor = -1

    @precondition(lambda self: self.next_number >= self.next_kill)
    @rule()
    def kill_server(self) -> None:
        self.next_kill = self.next_number + 25  # a kill costs more than all other rules together
        self.server.kill()
        self.server.start()

    @invariant()
    def accounting_is_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        accounting = self.queue.accounting()
        assert accounting.length == len(self.stream)
        assert sum(accounting.refused_by_symbol.values()) == self.num_refused
        assert {group_accounting.group for group_accounting in accounting.groups} == set(self.groups)
        for group_accounting in accounting.groups:
            group = self.groups[group_accounting.group]
            assert group_accounting.balance == 0
            assert (group_accounting.pending, group_accounting.undelivered) == (
                len(group.pending),
                len(group.undelivered),
            )
            assert {name: getattr(group_accounting, name) for name in group.counts} == group.counts


@pytest.fixture
def random_accounting(redis_server: RedisForTests) -> type[Accounting]:
    return type("BooksOnServer", (Accounting,), {"server": redis_server})


def test_the_accounting_balances_whatever_happens(random_accounting: type[Accounting]) -> None:
    run_state_machine_as_test(
        random_accounting,
        settings=settings(
            max_examples=30,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # shrinking would kill the server hundreds of times
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_accounting_balances_on_a_long_walk(random_accounting: type[Accounting]) -> None:
    """Hypothesis shrinks well but walks little; this goes on for long, with acknowledgments as frequent as reads."""
    chance = random.Random(1)
    walk = random_accounting()
    walk.begin()
    num_acknowledged = 0
    for step in range(1500):
        operation = chance.choices(("publish", "consume", "acknowledge", "restart", "kill"), (4, 6, 8, 1, 0.1))[0]
        if step in (3, 40):
            walk.create_group()
        elif operation == "publish":
            walk.publish(chance.randint(1, 4), chance.randint(0, 2), chance.choice(("drop_oldest", "wait", "reject")))
        elif operation == "consume" and walk.groups:
            walk.consume(chance.randint(0, 1), chance.randint(1, 4))
        elif operation == "acknowledge" and any(group.pending for group in walk.groups.values()):
            picks = [chance.randrange(CAPACITY) for _ in range(chance.randint(1, 3))]
            walk.acknowledge(chance.randint(0, 1), picks, chance.random() < 0.1, chance.random() < 0.1)
            num_acknowledged += 1
        elif operation == "restart":
            walk.restart_consumers()
        elif operation == "kill":
            walk.server.kill()
            walk.server.start()
        walk.accounting_is_right()
    walk.teardown()
    assert num_acknowledged > 200
    assert all(min(group.counts.values()) > 10 for group in walk.groups.values()), "the walk missed something"
