"""Waiting room: whose turn it is, whoever came with however many jobs, and that it is bounded."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common_lib.exceptions import RateLimitError
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.runtime.waiting_room import WaitingRoom

KINDS = (JobKind.TRAIN,)
Make = Callable[..., JobSpec]
Enter = Callable[..., JobFolder]


@pytest.fixture
def room() -> WaitingRoom:
    return WaitingRoom(most_per_client=100)


@pytest.fixture
def enter(room: WaitingRoom, store: JobStore, make_spec: Make) -> Enter:
    def make(client: str, kind: JobKind = JobKind.TRAIN, *, again: bool = False, **request: object) -> JobFolder:
        folder = store.create(make_spec(kind, **request).model_copy(update={"client": client}))
        (room.enter_again if again else room.enter)(folder)
        return folder

    return make


def order(room: WaitingRoom, running: Counter[str] | None = None) -> list[str]:
    """Clients in the order in which their jobs are taken, each job being over before the next one begins."""
    found = []
    while (folder := room.next(KINDS, running or Counter())) is not None:
        found.append(folder.spec.client)
    return found


def test_clients_take_turns_however_many_jobs_each_has(room: WaitingRoom, enter: Enter) -> None:
    for client in "aaaaabbc":
        enter(client)
    assert order(room) == ["a", "b", "c", "a", "b", "a", "a", "a"]


def test_a_client_that_comes_late_goes_before_the_next_one_of_many(room: WaitingRoom, enter: Enter) -> None:
    for _ in range(5):
        enter("many")
    room.next(KINDS, Counter())
    enter("late")
    assert order(room)[0] == "late"


def test_who_has_fewer_jobs_under_way_goes_first(room: WaitingRoom, enter: Enter) -> None:
    enter("busy")
    enter("idle")
    assert order(room, Counter(busy=1)) == ["idle", "busy"]


def test_a_priority_orders_a_clients_own_jobs_alone(room: WaitingRoom, enter: Enter) -> None:
    low, normal, high = (enter("a", priority=each) for each in ("low", "normal", "high"))
    other = enter("b", priority="low")
    taken = [room.next(KINDS, Counter()) for _ in range(4)]
    assert [each.id for each in taken if each] == [high.id, other.id, normal.id, low.id]


def test_a_job_whose_worker_died_goes_first(room: WaitingRoom, enter: Enter) -> None:
    enter("a", priority="high")
    again = enter("b", again=True, priority="low")
    taken = room.next(KINDS, Counter(b=3))
    assert taken is not None
    assert taken.id == again.id


def test_only_kinds_with_a_free_place_are_taken(room: WaitingRoom, enter: Enter) -> None:
    enter("a", JobKind.REPLAY)
    assert room.next(KINDS, Counter()) is None
    assert len(room) == 1


def test_a_full_room_says_what_to_do_to_that_client_alone(store: JobStore, make_spec: Make) -> None:
    room = WaitingRoom(most_per_client=2)
    for _ in range(2):
        room.enter(store.create(make_spec().model_copy(update={"client": "a"})))
    with pytest.raises(RateLimitError, match="cancel one") as refused:
        room.check_room("a")
    assert (refused.value.details, refused.value.retry_after_s) == ({"num_waiting": 2, "limit": 2}, 30)
    room.check_room("b")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clients=st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_nobody_waits_for_more_than_one_job_of_each_other_client(
    store: JobStore, make_spec: Make, clients: list[str]
) -> None:
    room = WaitingRoom(most_per_client=100)
    for client in clients:
        room.enter(store.create(make_spec().model_copy(update={"client": client})))
    taken = order(room)
    assert sorted(taken) == sorted(clients), "each job is taken once"
    for client in set(clients):
        places = [place for place, each in enumerate(taken) if each == client]
        for before, after in zip([-1, *places], places, strict=False):
            between = taken[before + 1 : after]
            assert max(Counter(between).values(), default=0) <= 1
