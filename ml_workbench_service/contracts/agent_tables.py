"""Tables of an agent, row by row: what it has decided, and what it expects of each action in each state."""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.agents import AgentFamily, AgentMode, Size, StepFill
from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.series import Figure, Row, TablePage, column

Action = Literal["short", "flat", "long"]


class AgentDecisionRow(Row):
    """A row of `GET /agents/{id}/decisions`: an entry of the stream; `reward`, `cost`: of the step it settled."""

    decided_at: UtcDatetime = column("UTC", "When the entry was written.")
    as_of: UtcDatetime = column("UTC", "Of the prediction that it answers.")
    symbol: str = column("-", "Such as EUR/USD.")
    action: Action = column("-", "What the agent asks for.")
    position: Size = column("1", "The same as a number: the signed size, of a policy -1, 0 or 1.")
    size: Figure = column("1", "Position times the deployment's scaling factor; 0 where nobody shall trade it.")
    mode: AgentMode = column("-", "`frozen` decisions are for trading, all others are watched.")
    explored: bool = column("-", "Whether the action was a random one.")
    reward: Figure = column("log return", "Of the step that this record settled, after costs; null: none was.")
    cost: Figure = column("log return", "Spread, commission, slippage and swap of that step.")
    expected_cost: Figure = column("fraction of the price", "Of the change of exposure that is asked for.")
    cumulative_reward: Figure = column("log return", "Of the deciding process, since it began or was reset.")
    exploration_rate: Figure = column("probability", "Of a random action from then on.")
    price: Figure = column("price", "The record's.")
    fill: StepFill | None = column("-", "How the settled step was filled; null without one.")
    model_id: str = column("-", "Whose prediction it answers.")
    version: str = column("-", "The model's version.")
    prediction_id: str = column("-", "As `POST /predict` answered, and in the queue.")
    lane: str = column("-", "The series that the position belongs to: symbol, timeframe, target and source.")
    valid_until: UtcDatetime = column("UTC", "From then on the decision says nothing any more.")


class QTableRow(Row):
    """A row of `GET /agents/{id}/q-table`: a state in words, and what the agent expects of each action in it."""

    state: int = column("-", "The table's row, from 0 on.")
    forecast: str = column("volatilities", "Bin of the forecast; `abstained`: there was none.")
    width: str = column("volatilities", "Bin of the interval's width.")
    held: Action = column("-", "The position held.")
    best: Action = column("-", "What would be chosen without exploring; among equals flat.")
    visits: int = column("updates", "How often anything was learnt of this state.")
    value_short: Figure = column("log return", "Discounted, of going or staying short; 0 while it was never visited.")
    value_flat: Figure = column("log return", "Discounted, of going or staying flat.")
    value_long: Figure = column("log return", "Discounted, of going or staying long.")
    visits_short: int = column("updates", "Of `value_short`.")
    visits_flat: int = column("updates", "Of `value_flat`.")
    visits_long: int = column("updates", "Of `value_long`.")


class DecisionsKept(Contract):
    """What the stream of decisions still holds, of all agents together."""

    num_entries: int
    most_entries: int = Field(description="About as many are kept; the oldest go first.")
    oldest_at: UtcDatetime | None
    newest_at: UtcDatetime | None


class AgentDecisions(TablePage):
    """`GET /agents/{id}/decisions`, newest first."""

    agent_id: str
    kept: DecisionsKept
    rows: tuple[AgentDecisionRow, ...]


class AgentQTable(TablePage):
    """`GET /agents/{id}/q-table`, in the table's order, as of the last checkpoint."""

    agent_id: str
    family: AgentFamily
    saved_at: UtcDatetime = Field(description="When the checkpoint was written; of several processes the newest.")
    exploration_rate: Finite
    strength_edges: tuple[Finite, ...] = Field(description="Between the bins of `forecast`, in volatilities.")
    width_edges: tuple[Finite, ...] = Field(description="Between the bins of `width`, in volatilities.")
    rows: tuple[QTableRow, ...]
