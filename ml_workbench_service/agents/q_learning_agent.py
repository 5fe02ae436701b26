"""Q-learning agent: learns a table of action values from what its own steps earn, one record at a time."""

from collections.abc import Sequence
from typing import Any

from ml_workbench_service.agents.agent import Agent, Choice, says_nothing
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.positions import RealisedStep
from ml_workbench_service.agents.q_table import POSITIONS, USUAL_WIDTH, QTable, StateBins
from ml_workbench_service.contracts.agents import AgentFamily, AgentMode, QLearningHyperparameters, RewardSettings
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.sizing import Held


class QLearningAgent(Agent):
    """Reads a forecast in units of its volatility, the width of its interval and its own position.

    Args:
        agent_id, mode, model_id, costs: as every agent's.
        hyperparameters: of the Q table.
        reward: what it wants; what it reports is the log return, whatever this says.
        bins: how records become states.
    """

    family: AgentFamily = "q_learning"

    def __init__(
        self,
        agent_id: str,
        *,
        mode: AgentMode = "learn",
        hyperparameters: QLearningHyperparameters | None = None,
        costs: Costs | None = None,
        bins: StateBins | None = None,
        model_id: str | None = None,
        reward: RewardSettings | None = None,
    ) -> None:
        super().__init__(agent_id, mode=mode, model_id=model_id, costs=costs)
        self.table = QTable(hyperparameters or QLearningHyperparameters(), bins)
        self.reward = reward or RewardSettings()

    @property
    def exploration_rate(self) -> float:
        """Of its table while it learns; otherwise it explores nothing."""
        return self.table.exploration_rate if self.mode == "learn" else 0.0

    def _state(self, record: PredictionRecord, position: float) -> int:
        position = int(position)
        if says_nothing(record):
            return self.table.bins.state_of(None, None, position)
        assert record.prediction is not None
        metadata = record.metadata
        if metadata.strength is not None:  # no forecast: the model says itself which way it leans
            return self.table.bins.state_of(metadata.strength, None, position)
        width = None if record.interval is None else record.interval.upper - record.interval.lower
        scale = metadata.volatility
        if not scale and width:
            scale = width / USUAL_WIDTH  # no volatility came along: what a usual interval of this width would have
        if not scale or scale < 0:
            return self.table.bins.state_of(0.0, None, position)  # of unknown strength, so it says nothing
        return self.table.bins.state_of(record.prediction / scale, None if width is None else width / scale, position)

    def _learn(self, realised: Sequence[RealisedStep]) -> None:
        if self.mode != "learn":
            return
        aversion = self.reward.risk_aversion / 2
        for step in realised:
            wanted = step.reward - aversion * step.reward**2
            self.table.learn(step.state, step.action, reward=wanted, next_state=step.next_state)

    def _choose(self, record: PredictionRecord, state: int, held: Held) -> Choice:
        if self.mode == "learn":
            action, explored = self.table.choose(state)
            return Choice(POSITIONS[action], explored)
        return Choice(POSITIONS[self.table.greedy(state)])

    def _knowledge(self) -> dict[str, Any]:
        table = self.table
        return {
            "family": self.family,
            "hyperparameters": table.hyperparameters,
            "reward": self.reward,
            "strength_edges": table.bins.strength_edges,
            "width_edges": table.bins.width_edges,
            "values_SA": table.values_SA.tolist(),
            "visits_SA": table.visits_SA.tolist(),
            "exploration_rate": self.exploration_rate,
            "random_state": table.random_state,
        }

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "QLearningAgent":
        """The agent that continues exactly where the checkpoint was taken."""
        agent = cls(
            checkpoint.agent_id,
            mode=checkpoint.mode,
            hyperparameters=checkpoint.hyperparameters,
            costs=checkpoint.costs,
            bins=StateBins(checkpoint.strength_edges, checkpoint.width_edges),
            model_id=checkpoint.model_id,
            reward=checkpoint.reward,
        )
        agent.table.values_SA[:] = checkpoint.values_SA
        agent.table.visits_SA[:] = checkpoint.visits_SA
        agent.table.exploration_rate = checkpoint.exploration_rate
        agent.table.random_state = checkpoint.random_state
        agent._continue(checkpoint)
        return agent
