"""Policy agent: executes a deployed reinforcement-learning model on the stream: it learns nothing, it holds positions.

A record of such a model says which position follows for one who holds -1, 0 and 1 (`metadata.actions_by_position`). The
agent takes the one of the position that it holds itself in the record's series, whatever position the caller of
/predict named. So over consecutive bars, weekends among them, it does what the card's backtest of the same version did,
and earns the same; unlike the backtest it does not close at a gap in the bars, where it holds on and realises at the
next bar, `approximate`.

It fails where records carry no such actions, as those of other models: they are counted as observed.
"""

from collections.abc import Sequence
from typing import Any

from ml_workbench_service.agents.agent import Agent, Choice, says_nothing
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.positions import RealisedStep
from ml_workbench_service.contracts.agents import AgentFamily, AgentMode
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.sizing import Held


class PolicyAgent(Agent):
    """Does what one deployed policy says, from the position that it holds itself.

    Args:
        agent_id, costs: as every agent's.
        family: of the model.
        model_id: whose predictions it acts on.
        mode: `shadow` or `frozen`.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        family: AgentFamily,
        model_id: str,
        mode: AgentMode = "shadow",
        costs: Costs | None = None,
    ) -> None:
        super().__init__(agent_id, mode=mode, model_id=model_id, costs=costs)
        self.family = family

    @property
    def exploration_rate(self) -> float:
        """It explores nothing."""
        return 0.0

    def _acts_on(self, record: PredictionRecord) -> bool:
        return super()._acts_on(record) and (record.metadata.actions_by_position is not None or says_nothing(record))

    def _state(self, record: PredictionRecord, position: float) -> int:
        return 0

    def _learn(self, realised: Sequence[RealisedStep]) -> None:
        pass

    def _choose(self, record: PredictionRecord, state: int, held: Held) -> Choice:
        actions = record.metadata.actions_by_position
        assert actions is not None, "only records with actions are acted on"
        return Choice(actions[int(held.position) + 1])

    def _knowledge(self) -> dict[str, Any]:
        return {"family": self.family}

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "PolicyAgent":
        """The agent that continues exactly where the checkpoint was taken."""
        assert checkpoint.model_id is not None, "a policy's agent is bound to its model"
        agent = cls(
            checkpoint.agent_id,
            family=checkpoint.family,
            model_id=checkpoint.model_id,
            mode=checkpoint.mode,
            costs=checkpoint.costs,
        )
        agent._continue(checkpoint)
        return agent
