"""Signal agent: takes the positions of a deployed forecast or classifier by the rule that its records carry.

A record says which position its version's declared rule wants (`metadata.sizing`) and on which terms what is held is
kept; without a rule its direction is the position, of size 1, as versions before the rules had it. What follows from it
and from what is held is decided by `market/sizing.py`, as in the backtest. So over consecutive bars, weekends among
them, the agent does what the card of the same version did, and earns the same; unlike the backtest it does not close
at a gap in the bars, where it holds on and realises at the next bar, `approximate`.
"""

from collections.abc import Sequence
from typing import Any

from ml_workbench_service.agents.agent import Agent, Choice
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.positions import RealisedStep
from ml_workbench_service.contracts.agents import AgentFamily, AgentMode
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.sizing import Held, next_held, terms_of


class SignalAgent(Agent):
    """Does what one deployed model's position rule says.

    Args:
        agent_id, costs: as every agent's.
        model_id: whose predictions it acts on.
        mode: `shadow` or `frozen`.
    """

    family: AgentFamily = "signal"

    def __init__(self, agent_id: str, *, model_id: str, mode: AgentMode = "shadow", costs: Costs | None = None) -> None:
        super().__init__(agent_id, mode=mode, model_id=model_id, costs=costs)

    @property
    def exploration_rate(self) -> float:
        """It explores nothing."""
        return 0.0

    def _state(self, record: PredictionRecord, position: float) -> int:
        return 0

    def _learn(self, realised: Sequence[RealisedStep]) -> None:
        pass

    def _choose(self, record: PredictionRecord, state: int, held: Held) -> Choice:
        terms = terms_of(record)
        taken = next_held(terms.wanted, held, band=terms.band, decide=terms.decide, horizon=terms.horizon)
        return Choice(taken.position, held_bars=taken.bars)

    def _knowledge(self) -> dict[str, Any]:
        return {"family": self.family}

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "SignalAgent":
        """The agent that continues exactly where the checkpoint was taken."""
        assert checkpoint.model_id is not None, "a signal's agent is bound to its model"
        agent = cls(checkpoint.agent_id, model_id=checkpoint.model_id, mode=checkpoint.mode, costs=checkpoint.costs)
        agent._continue(checkpoint)
        return agent
