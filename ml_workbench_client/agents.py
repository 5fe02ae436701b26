"""`AgentHandle` and `DeploymentHandle`: one agent, one deployment, by their ids."""

from typing import Any, Generic

from ml_workbench_client import routes
from ml_workbench_client.fields import Moment
from ml_workbench_client.frames import ARROW, Document, Figure, Rows, Table
from ml_workbench_client.plans import M, Plan, operation, reading
from ml_workbench_client.routes import query
from ml_workbench_client.sending import Link, Resource
from ml_workbench_service.contracts.agent_tables import AgentDecisionRow, AgentDecisions
from ml_workbench_service.contracts.agents import Agent
from ml_workbench_service.contracts.deployment import Deployment


class AgentHandle(Resource[M], Generic[M]):
    """One agent on the prediction stream. Making this object asks nothing."""

    def __init__(self, link: Link, agent_id: str) -> None:
        super().__init__(link)
        self.id = agent_id

    @reading(routes.SHOW_AGENT)
    def state(self) -> Plan[Agent]:
        """As of its last checkpoint: counters, cumulative reward and cost, exploration, positions."""
        return (yield from self._read(Agent, routes.SHOW_AGENT, agent_id=self.id))

    @operation(routes.Q_TABLE)
    def q_table(self) -> Plan[Table]:
        """What it has learnt: every state in words, its visits, and the value of each action there.

        Raises:
            SeriesNotFoundError: it executes a policy and has no table.
            ConflictError: it has not begun.
        """
        answer = yield from self._ask(routes.Q_TABLE, accept=ARROW, agent_id=self.id)
        return Table(answer.content, f"Q table of {self.id}")

    @operation(routes.DECISIONS)
    def decisions(
        self, *, symbol: str | None = None, from_: Moment | None = None, to: Moment | None = None,
        limit: int | None = None,
    ) -> Plan[Table]:  # fmt: skip
        """What it decided, newest first: action, position, reward, cost; as far back as the stream still goes.

        Args:
            symbol: of one symbol alone.
            from_, to: first and last `as_of`, both inclusive.
            limit: the newest so many, at most 200.
        """
        asked = query(symbol=symbol, to=to, limit=limit, **{"from": from_})
        answer = yield from self._ask(routes.DECISIONS, query=asked, accept=ARROW, agent_id=self.id)
        return Table(answer.content, f"decisions of {self.id}")

    @operation(routes.DECISIONS)
    def last_decisions(self, num: int = 50) -> Plan[Rows[AgentDecisionRow]]:
        """Its newest decisions as contracts, newest first; at most 200."""
        found = yield from self._read(AgentDecisions, routes.DECISIONS, query=query(limit=num), agent_id=self.id)
        return Rows(found.rows)

    @operation(routes.LIST_AGENT_FIGURES)
    def figures(self) -> Plan[Document]:
        """The figures that there are of it."""
        return Document((yield from self._read(dict[str, Any], routes.LIST_AGENT_FIGURES, agent_id=self.id)))

    @operation(routes.AGENT_FIGURE)
    def figure(self, name: str) -> Plan[Figure]:
        """One figure, `agent_reward` or `q_table`: notebooks draw it, `to_plotly()` makes it plotly's."""
        return Figure((yield from self._read(dict[str, Any], routes.AGENT_FIGURE, agent_id=self.id, name=name)))

    @operation(routes.START_AGENT)
    def start(self) -> Plan[Agent]:
        """Starts it again with what it knows and holds; a running one is left alone."""
        return (yield from self._read(Agent, routes.START_AGENT, agent_id=self.id))

    @operation(routes.STOP_AGENT)
    def stop(self) -> Plan[Agent]:
        """Ends its process after the batch at hand; what it has learnt stays in its checkpoint."""
        return (yield from self._read(Agent, routes.STOP_AGENT, agent_id=self.id))

    @operation(routes.RESET_AGENT)
    def reset(self) -> Plan[Agent]:
        """Makes it forget what it has learnt and holds."""
        return (yield from self._read(Agent, routes.RESET_AGENT, agent_id=self.id))

    @operation(routes.DELETE_AGENT)
    def delete(self) -> Plan[None]:
        """Removes a stopped agent and its checkpoints."""
        yield from self._ask(routes.DELETE_AGENT, agent_id=self.id)

    def __repr__(self) -> str:
        return f"<Agent {self.id}>"


class DeploymentHandle(Resource[M], Generic[M]):
    """One deployment. Making this object asks nothing."""

    def __init__(self, link: Link, deployment_id: str) -> None:
        super().__init__(link)
        self.id = deployment_id

    @reading(routes.SHOW_DEPLOYMENT)
    def state(self) -> Plan[Deployment]:
        """As it stands now."""
        return (yield from self._read(Deployment, routes.SHOW_DEPLOYMENT, deployment_id=self.id))

    @operation(routes.ROLL_BACK)
    def roll_back(self) -> Plan[Deployment]:
        """Deploys what was live before this one, with the settings it had; the new deployment."""
        return (yield from self._read(Deployment, routes.ROLL_BACK, deployment_id=self.id))

    def __repr__(self) -> str:
        return f"<Deployment {self.id}>"
