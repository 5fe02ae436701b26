"""Reading decisions back: newest first, by agent, across more entries than are read at a time."""

from datetime import UTC, datetime, timedelta

import pytest

from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.queue import DECISIONS_STREAM
from ml_workbench_service.integrations import decision_stream
from ml_workbench_service.integrations.decision_stream import DecisionStream, WantedDecisions, written_at
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401

BEGIN = datetime(2025, 1, 6, tzinfo=UTC)


def decision(number: int, agent_id: str = "one") -> Decision:
    as_of = BEGIN + timedelta(hours=number)
    return Decision(
        agent_id=agent_id, prediction_id=f"p-{number}", model_id="m", version="1.0.0",
        symbol="EUR/USD" if number % 3 else "GBP/USD", lane="x", as_of=as_of, valid_until=as_of + timedelta(hours=1),
        price=1.1, action="long", position=1, size=0.0, mode="shadow", explored=number % 2 == 0, expected_cost=0.0,
        reward=None if number == 0 else 0.001, cost=None, cumulative_reward=0.001 * number, exploration_rate=0.5,
    )  # fmt: skip


@pytest.fixture
def stream(redis_server: RedisForTests, monkeypatch: pytest.MonkeyPatch) -> DecisionStream:
    """Forty decisions of two agents in turn; few are read at a time."""
    monkeypatch.setattr(decision_stream, "ENTRIES_PER_LOOK", 7)
    found = DecisionStream(redis_server.url)
    for number in range(40):
        agent_id = "one" if number % 2 == 0 else "other"
        found.write(agent_id, [(f"{number + 1}-0", decision(number, agent_id))])
    return found


def test_an_agents_decisions_are_found_newest_first_page_by_page(stream: DecisionStream) -> None:
    wanted = WantedDecisions("one")
    whole = stream.find(wanted)
    numbers = [int(each.prediction_id[2:]) for _, each in whole.decisions]
    assert numbers == list(range(38, -1, -2))
    assert (whole.num_wanted, whole.has_more, whole.kept.num_entries) == (20, False, 40)
    assert whole.decisions[-1][1].reward is None
    pages, before = [], None
    while True:
        page = stream.find(wanted, limit=6, before=before)
        assert page.num_wanted == 20
        pages += page.decisions
        before = page.decisions[-1][0]
        if not page.has_more:
            break
    assert tuple(pages) == whole.decisions
    stream.close()


def test_they_are_chosen_by_symbol_range_and_when_they_were_made(stream: DecisionStream) -> None:
    of_pound = stream.find(WantedDecisions("one", symbol="GBP/USD"))
    assert {each.symbol for _, each in of_pound.decisions} == {"GBP/USD"}
    span = WantedDecisions("one", begin=BEGIN + timedelta(hours=4), end=BEGIN + timedelta(hours=8))
    assert [each.prediction_id for _, each in stream.find(span).decisions] == ["p-8", "p-6", "p-4"]
    entry_id = stream.find(WantedDecisions("one")).decisions[3][0]
    since = stream.find(WantedDecisions("one", decided_after=written_at(entry_id)))
    assert {each.prediction_id for _, each in since.decisions} <= {"p-38", "p-36", "p-34"}
    stream.close()


def test_what_is_kept_is_said_and_an_empty_stream_holds_nothing(redis_server: RedisForTests) -> None:
    stream = DecisionStream(redis_server.url, num_kept=5)
    nothing = stream.find(WantedDecisions("one"))
    assert (nothing.decisions, nothing.kept.num_entries, nothing.kept.newest_at) == ((), 0, None)
    stream.write("one", [(f"{number + 1}-0", decision(number)) for number in range(3)])
    client = redis_server.client()
    (last,) = client.xrevrange(DECISIONS_STREAM, count=1)
    assert stream.find(WantedDecisions("one")).kept.newest_at == written_at(last[0])
    client.close()
    stream.close()
