"""An agent's Q table, decisions and figures over HTTP: in words, in four formats, paged, refused where there is none.

The predictions of the fixture are few enough that the agent still explores; what is checked is that rows, counters and
checkpoint agree.
"""

from typing import Any

import httpx
import pytest

from ml_workbench_service.contracts.agent_tables import AgentDecisions, AgentQTable
from ml_workbench_service.contracts.figures import AgentFigureList
from ml_workbench_service.contracts.series import columns_of
from ml_workbench_service.contracts.tables import ROWS, TableFormat
from tests.api.conftest import Clone
from tests.api.failures import assert_failure, paths
from tests.api.tables.test_tables import frame
from tests.api.test_agents import become, predict, worked_off
from tests.api.test_queue import applied, deploy
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import ServiceProcess

AGENT = "/api/v1/agents/learner"
HOURS = range(1, 21)


@pytest.fixture(scope="module")
def learner(service: ServiceProcess, clone: Clone) -> dict[str, Any]:
    """An agent that has seen twenty bars of one model, and is stopped."""
    api = service.client
    deploy(api, clone("for_tables"))
    applied(api, 0)
    worked_off(api)
    api.post("/api/v1/agents", json={"id": "learner", "model_id": "for_tables"}).raise_for_status()
    predict(service, "for_tables", HOURS)
    become(api, "learner", num_actions=len(HOURS))
    api.post(f"{AGENT}/stop").raise_for_status()
    found: dict[str, Any] = api.get(AGENT).json()
    return found


def test_every_state_is_named_with_its_visits_and_the_value_of_each_action(
    api: httpx.Client, learner: dict[str, Any]
) -> None:
    page = AgentQTable.model_validate(api.get(f"{AGENT}/q-table", params={"limit": 200}).json())
    assert (page.agent_id, page.family, page.next_cursor) == ("learner", "q_learning", None)
    assert page.num_rows == len(page.rows) == (len(page.strength_edges) + 2) * (len(page.width_edges) + 1) * 3
    assert [row.state for row in page.rows] == list(range(page.num_rows))
    assert sum(row.visits for row in page.rows) == learner["num_settled"] > 0
    assert all(row.visits == row.visits_short + row.visits_flat + row.visits_long for row in page.rows)
    assert (page.rows[0].forecast, page.rows[0].width, page.rows[0].held) == ("≤-0.3", "≤2.5", "short")
    assert {row.forecast for row in page.rows[-9:]} == {"abstained"}
    assert all(row.best == "flat" for row in page.rows if not row.visits)
    assert page.exploration_rate == learner["exploration_rate"]
    whole = frame(api, f"{AGENT}/q-table", TableFormat.PARQUET)
    assert whole.columns == [each.name for each in columns_of(ROWS["q_table"])]
    assert whole.to_dicts() == [row.model_dump() for row in page.rows]
    for format in (TableFormat.CSV, TableFormat.ARROW):
        assert frame(api, f"{AGENT}/q-table", format).equals(whole), format


def test_its_decisions_come_newest_first_and_add_up_to_its_reward(api: httpx.Client, learner: dict[str, Any]) -> None:
    first = AgentDecisions.model_validate(api.get(f"{AGENT}/decisions", params={"limit": 7}).json())
    assert (len(first.rows), first.num_rows, first.warnings) == (7, len(HOURS), ())
    assert first.kept.num_entries >= len(HOURS)
    rows, cursor = list(first.rows), first.next_cursor
    while cursor is not None:
        answer = api.get(f"{AGENT}/decisions", params={"limit": 7, "cursor": cursor})
        page = AgentDecisions.model_validate(answer.json())
        rows, cursor = rows + list(page.rows), page.next_cursor
    assert [row.as_of.hour for row in rows] == list(reversed(HOURS))
    assert rows[0].cumulative_reward == pytest.approx(learner["cumulative_reward"])
    assert sum(row.reward or 0.0 for row in rows) == pytest.approx(learner["cumulative_reward"])
    assert sum(row.cost or 0.0 for row in rows) == pytest.approx(learner["cumulative_cost"])
    assert rows[0].exploration_rate == pytest.approx(learner["exploration_rate"])
    assert {(row.model_id, row.symbol, row.mode) for row in rows} == {("for_tables", "EUR/USD", "shadow")}
    assert any(row.explored for row in rows)
    whole = frame(api, f"{AGENT}/decisions", TableFormat.ARROW)
    assert whole.columns == [each.name for each in columns_of(ROWS["decision"])]
    assert whole["explored"].to_list() == [row.explored for row in rows]
    assert whole["cumulative_reward"].to_list() == [row.cumulative_reward for row in rows]
    for format in (TableFormat.CSV, TableFormat.PARQUET):
        assert frame(api, f"{AGENT}/decisions", format).equals(whole), format


def test_decisions_are_chosen_by_range_and_symbol(api: httpx.Client, learner: dict[str, Any]) -> None:
    span = {"from": "2025-01-08T05:00:00Z", "to": "2025-01-08T09:00:00Z"}
    page = AgentDecisions.model_validate(api.get(f"{AGENT}/decisions", params=span).json())
    assert [row.as_of.hour for row in page.rows] == [9, 8, 7, 6, 5]
    assert page.num_rows == 5
    assert api.get(f"{AGENT}/decisions", params={"symbol": "GBPUSD"}).json()["rows"] == []
    assert api.get(f"{AGENT}/decisions", params={"symbol": "eur_usd"}).json()["num_rows"] == len(HOURS)
    csv = frame(api, f"{AGENT}/decisions", TableFormat.CSV, limit=3)
    assert len(csv) == 3
    refused = api.get(f"{AGENT}/decisions", params={"cursor": "bm9uZQ=="})
    assert paths(assert_failure(refused, 422, "DATA_VALIDATION_ERROR")) == ["query.cursor"]


def test_its_figures_are_drawn_of_both(api: httpx.Client, learner: dict[str, Any]) -> None:
    listed = AgentFigureList.model_validate(api.get(f"{AGENT}/figures").json())
    assert {each.name: each.applies for each in listed.figures} == {"agent_reward": True, "q_table": True}
    for each in listed.figures:
        drawn = api.get(each.href, params={"theme": "dark"}).raise_for_status().json()
        assert drawn["data"], each.name
    reward = api.get(f"{AGENT}/figures/agent_reward").json()
    net = next(each for each in reward["data"] if each["name"] == "net")
    assert len(net["x"]) == len(HOURS)
    assert net["y"][-1] == pytest.approx(learner["cumulative_reward"], rel=1e-5)
    assert_failure(api.get(f"{AGENT}/figures/equity"), 404, "NOT_FOUND")
    assert "did you mean q_table" in api.get(f"{AGENT}/figures/q_tabl").json()["message"]


def test_after_a_reset_only_what_follows_is_drawn(api: httpx.Client, learner: dict[str, Any]) -> None:
    api.post(f"{AGENT}/reset").raise_for_status()
    drawn = api.get(f"{AGENT}/figures/agent_reward").json()
    assert drawn["data"] == []
    assert "decided nothing" in drawn["layout"]["annotations"][0]["text"]
    assert api.get(f"{AGENT}/decisions").json()["num_rows"] == len(HOURS), "the stream still holds them"
    assert {row["visits"] for row in api.get(f"{AGENT}/q-table").json()["rows"]} == {0}


def test_a_policy_has_no_table_and_an_unknown_agent_nothing(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    small = registry_of(service) / "small" / "1.0.0"
    copy_version(small, registry_of(service), "policy_only", "1.0.0", type="reinforcement_learning", family="dqn")
    deploy(api, "policy_only")
    api.post("/api/v1/agents", json={"id": "executes", "family": "dqn", "model_id": "policy_only"}).raise_for_status()
    failure = assert_failure(api.get("/api/v1/agents/executes/q-table"), 404, "SERIES_NOT_FOUND")
    assert "dqn" in failure["message"]
    assert api.get("/api/v1/agents/executes/decisions").json()["rows"] == []
    drawn = api.get("/api/v1/agents/executes/figures/q_table").json()
    assert "keeps no table" in drawn["layout"]["annotations"][0]["text"]
    listed = api.get("/api/v1/agents/executes/figures").json()["figures"]
    assert not any(each["applies"] for each in listed)
    api.post("/api/v1/agents/executes/stop").raise_for_status()
    for place in ("q-table", "decisions", "figures", "figures/q_table"):
        assert_failure(api.get(f"/api/v1/agents/absent/{place}"), 404, "AGENT_NOT_FOUND")
