"""Agents on the prediction stream: what is asked of one, its state on the wire, and its decisions."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, ModelId, UtcDatetime
from ml_workbench_service.contracts.market import Costs

AgentMode = Literal["learn", "frozen", "shadow"]
AgentFamily = Literal["q_learning", "linear_policy", "dqn", "ppo", "signal"]
"""`signal` executes what a deployed forecast or classifier says, by the position rule that its records carry."""
Size = int | Finite
"""A signed position: whole numbers stay whole."""
AgentStatus = Literal["starting", "running", "stopped", "failed"]
StepFill = Literal["next_open", "next_close", "approximate", "record_close"]
"""At the next bar's open, or close; `approximate` where a price was missing or a bar skipped: such a step is compared
with no card; `record_close`: by the rule of earlier versions."""
DEFAULT_AGENT_ID = "default"
AgentId = Annotated[ModelId, Field(description="Lower-case id of an agent.")]


class QLearningHyperparameters(Asked):
    """Tabular Q-learning (Watkins, 1989), with the original specification's three names."""

    learning_rate: Finite = Field(default=0.1, gt=0, le=1, description="Step of the Q update.")
    exploration_rate: Finite = Field(default=1.0, ge=0, le=1, description="Share of random actions at the start.")
    exploration_decay: Finite = Field(default=0.999, gt=0, le=1, description="Factor on it after every decision.")
    exploration_minimum: Finite = Field(default=0.02, ge=0, le=1, description="Exploration never falls below this.")
    discount_factor: Finite = Field(default=0.95, ge=0, lt=1, description="Weight of the next state's value.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the exploration.")


class RewardSettings(Asked):
    """What an agent learns to want; what is reported as earned does not depend on it.

    The table learns from `r - risk_aversion / 2 * r²`, r the step's log return after costs: the mean-variance reward of
    Ritter ("Machine learning for trading", Risk 30, 2017) with the mean of one step taken as 0, which it nearly is
    beside its deviation. On hourly majors a step moves some 0.1 %, so that 1,000 weighs an ordinary loss half as much
    again, and 0 (the default) learns from the return itself.
    """

    risk_aversion: Finite = Field(default=0.0, ge=0, le=1e6, description="Weight of half the squared log return.")


class AgentRequest(Asked):
    """`POST /agents`: one more agent on the prediction stream, with a consumer group of its own."""

    id: AgentId | None = Field(default=None, description="A readable one is made from family and model unless given.")
    model_id: ModelId | None = Field(
        default=None, description="Acts on this model's predictions only; unless given, on those of every live model."
    )
    family: AgentFamily = Field(
        default="q_learning",
        description="`q_learning` learns on the stream; `linear_policy`, `dqn` and `ppo` execute a deployed model of "
        "that family; `signal` takes the positions of a deployed time_series or classification model, by its declared "
        "rule.",
    )
    mode: AgentMode | None = Field(
        default=None,
        description="`learn` (default of q_learning), `frozen` (its decisions are for trading), `shadow` (is only "
        "watched; default of every other family).",
    )
    hyperparameters: QLearningHyperparameters | None = Field(default=None, description="Of an agent that learns.")
    costs: Costs | None = Field(default=None, description="In place of those that the records carry.")
    reward: RewardSettings | None = Field(default=None, description="What an agent that learns is to want.")
    copy_of: AgentId | None = Field(default=None, description="Begin with what this agent's table has learnt.")


class AgentDefinition(Contract):
    """What an agent is, on disk in `agent.json`, and whether it shall run; written before its process starts."""

    id: str
    family: AgentFamily = "q_learning"
    mode: AgentMode = "learn"
    model_id: str | None = None
    hyperparameters: QLearningHyperparameters | None = None
    costs: Costs | None = None
    reward: RewardSettings = RewardSettings()
    copy_of: str | None = None
    wanted: Literal["running", "stopped"] = "running"
    created_at: UtcDatetime


NUM_ACTIONS = 3
"""To be short, flat or long; as many positions may be held."""
Visits = Annotated[int, Field(ge=0, lt=2**63)]


def check_table(
    table_SA: Sequence[Sequence[float]], *, strength_edges: Sequence[float], width_edges: Sequence[float]
) -> None:
    """That a Q table has a row for each state that its bins make, and a column for each action; raises ValueError."""
    num_states = (len(strength_edges) + 2) * (len(width_edges) + 1) * NUM_ACTIONS
    if len(table_SA) != num_states or any(len(row) != NUM_ACTIONS for row in table_SA):
        raise ValueError(f"a table of these bins has {num_states} rows of {NUM_ACTIONS} values")


class Beginning(Contract):
    """What a copy's table begins with, on disk in `beginning.json`, and the bins that it was learnt in."""

    strength_edges: tuple[Finite, ...]
    width_edges: tuple[Finite, ...]
    values_SA: list[list[Finite]]
    visits_SA: list[list[Visits]]

    @model_validator(mode="after")
    def _fits_its_bins(self) -> "Beginning":
        for table_SA in (self.values_SA, self.visits_SA):
            check_table(table_SA, strength_edges=self.strength_edges, width_edges=self.width_edges)
        return self


class Agent(Contract):
    """One agent as `GET /agents/{id}` shows it; where it has a process for each shard, all of them together."""

    id: str
    family: AgentFamily = "q_learning"
    mode: AgentMode
    model_id: str | None = Field(default=None, description="The only model it acts on; null: every live one.")
    status: AgentStatus
    wanted: Literal["running", "stopped"] = Field(default="running", description="What was asked for last.")
    hyperparameters: QLearningHyperparameters | None = Field(description="Null for those that do not learn.")
    costs: Costs | None = Field(default=None, description="Its own; null: those that the records carry.")
    reward: RewardSettings = RewardSettings()
    copy_of: str | None = None
    num_processes: int = Field(default=1, description="One for each shard of the prediction queue.")
    num_applied: int = Field(description="Stream entries applied, each once; a reset does not begin it anew.")
    num_before_reset: int = Field(default=0, description="Those before the last reset, of which nothing else counts.")
    num_actions: int = 0
    num_observed: int = Field(default=0, description="Applied entries that could cause no action.")
    num_late: int = Field(default=0, description="Bars not newer than their series' last; counted, never realised.")
    num_repeated: int = Field(default=0, description="Late bars that were their series' last one again.")
    num_out_of_order: int = Field(default=0, description="Late bars older than their series' last one.")
    num_settled: int = 0
    num_approximate: int = Field(default=0, description="Settled steps that lacked a price, or skipped a bar.")
    cumulative_reward: Finite = Field(default=0.0, description="Log return after costs, whatever `reward` says.")
    cumulative_cost: Finite = 0.0
    exploration_rate: Finite
    last_applied_id: str | None
    positions: dict[str, Size] = Field(description="Last chosen position of each symbol: -1, 0, 1, or a rule's size.")
    created_at: UtcDatetime | None = None
    updated_at: UtcDatetime | None


class AgentList(Contract):
    """`GET /agents`."""

    agents: tuple[Agent, ...]
    next_cursor: str | None = None


class Decision(Contract):
    """An entry of the `decisions` stream. `reward` and `cost` are of the step that this record realised.

    `expected_cost` is what the change of exposure that this decision asks for would cost at this record's price and
    costs, as a fraction of the price; 0 where nothing changes. After `valid_until` the decision says nothing any more.
    """

    agent_id: str
    prediction_id: str
    model_id: str
    version: str
    symbol: str
    lane: str
    as_of: UtcDatetime
    valid_until: UtcDatetime
    price: Finite
    action: Literal["short", "flat", "long"]
    position: Size
    size: Finite
    mode: AgentMode
    explored: bool
    expected_cost: Finite
    reward: Finite | None
    cost: Finite | None
    cumulative_reward: Finite
    exploration_rate: Finite
    fill: StepFill | None = Field(default=None, description="How the realised step was filled; null without one.")
