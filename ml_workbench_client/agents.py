"""`AgentHandle` and `DeploymentHandle`: one agent, one deployment, by their ids."""

from typing import Generic

from ml_workbench_client import routes
from ml_workbench_client.plans import M, Plan, operation, reading
from ml_workbench_client.sending import Link, Resource
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
