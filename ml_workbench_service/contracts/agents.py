"""Agents on the prediction stream: their hyper-parameters, their state on the wire, and their decisions."""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime

AgentMode = Literal["learn", "frozen", "shadow"]
DEFAULT_AGENT_ID = "default"


class QLearningHyperparameters(Contract):
    """Tabular Q-learning (Watkins, 1989), with the first seed's three names."""

    learning_rate: Finite = Field(default=0.1, gt=0, le=1, description="Step of the Q update.")
    exploration_rate: Finite = Field(default=1.0, ge=0, le=1, description="Share of random actions at the start.")
    exploration_decay: Finite = Field(default=0.999, gt=0, le=1, description="Factor on it after every decision.")
    exploration_minimum: Finite = Field(default=0.02, ge=0, le=1, description="Exploration never falls below this.")
    discount_factor: Finite = Field(default=0.95, ge=0, lt=1, description="Weight of the next state's value.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the exploration.")


class Agent(Contract):
    """One agent as `GET /agents/{id}` shows it."""

    id: str
    family: Literal["q_learning"] = "q_learning"
    mode: AgentMode
    status: Literal["running", "stopped", "failed"]
    hyperparameters: QLearningHyperparameters
    num_applied: int = Field(description="Stream entries applied, each once.")
    num_actions: int = 0
    num_observed: int = Field(default=0, description="Applied entries that could cause no action.")
    num_late: int = Field(default=0, description="Late or repeated bars of a lane; counted, never settled.")
    num_settled: int = 0
    cumulative_reward: Finite = 0.0
    cumulative_cost: Finite = 0.0
    exploration_rate: Finite
    last_applied_id: str | None
    positions: dict[str, int] = Field(description="Last chosen position of each symbol: -1, 0 or 1.")
    updated_at: UtcDatetime | None


class AgentList(Contract):
    """`GET /agents`."""

    agents: tuple[Agent, ...]
    next_cursor: str | None = None


class Decision(Contract):
    """An entry of the `decisions` stream. `reward` and `cost` are of the step that this record settled."""

    agent_id: str
    prediction_id: str
    lane: str
    as_of: UtcDatetime
    price: Finite
    action: Literal["short", "flat", "long"]
    position: int
    size: Finite
    mode: AgentMode
    explored: bool
    reward: Finite | None
    cost: Finite | None
    cumulative_reward: Finite
    exploration_rate: Finite
