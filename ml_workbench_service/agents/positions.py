"""Positions: an agent's position on one series of predictions, and `realise`, which pays what a price makes known.

A series is (source, model, symbol, timeframe). Its *position* is the last one chosen (-1, 0, 1); its *exposure* is the
position times the record's `scaling_factor`, and is what costs, swap and reward are charged on. A chosen exposure
becomes a step that is filled and later realised:

    fill next_open    chosen at bar t, filled there (the next open), earns p(t) → p(t+1), realised at bar t+1
    fill next_close   chosen at bar t, filled at p(t+1) (the next fixing), earns p(t+1) → p(t+2), realised at bar t+2

"Next" is the series' next record: a position is held through whatever bars were dropped on the way, and pays for it.
A step pays the costs of the bar at which it is filled: the spread follows bars and sessions.

Positions and steps are values: nobody changes one, a bar makes new ones. They are plain slotted dataclasses (an agent
makes two with every record), which pydantic checks where a checkpoint is read.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ConfigDict

from ml_workbench_service.contracts.contract import Finite
from ml_workbench_service.contracts.market import Costs, FillRule
from ml_workbench_service.market.costs import step_log_return, swap_cost, unit_cost


@dataclass(slots=True)
class Step:
    """One chosen exposure on its way to its reward."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    state: int
    action: int
    exposure: Finite
    change: Finite  # |exposure - the exposure before|
    fill: FillRule
    entry_price: Finite | None  # None: not filled yet
    entry_ms: int | None
    costs: Costs | None = None  # of the fill; None: not filled yet, or a checkpoint from before they were kept
    next_state: int | None = None  # the state of the series' next decision, once it is known


@dataclass(slots=True)
class Position:
    """Where one series stands; `last_ms` is the newest bar's `as_of` (None: no bar yet)."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    last_ms: int | None = None
    position: int = 0
    exposure: Finite = 0.0
    steps: tuple[Step, ...] = ()


class Bar(NamedTuple):
    """What an agent reads of the bar at hand: its `as_of`, its price, and the costs that steps filled at it pay."""

    at_ms: int
    price: float
    costs: Costs


class RealisedStep(NamedTuple):
    """What one step earned: its log return after costs, and the costs (trading and swap) as a fraction."""

    state: int
    action: int
    next_state: int
    reward: float
    cost: float


def open_step(
    standing: Position,
    *,
    state: int,
    action: int,
    exposure: float,
    fill: FillRule,
    bar: Bar,
) -> Step:
    """The step that a decision on the bar at hand opens."""
    filled = fill == "next_open"
    change = abs(exposure - standing.exposure)
    if filled:
        return Step(state, action, exposure, change, fill, bar.price, bar.at_ms, bar.costs)
    return Step(state, action, exposure, change, fill, None, None)


def realise(standing: Position, *, symbol: str, bar: Bar, state: int) -> tuple[list[RealisedStep], tuple[Step, ...]]:
    """What the bar at hand realises, and the steps that stay open; changes nothing.

    Args:
        standing: the position before this bar.
        symbol: whose pips the costs are in.
        bar: later than the series' last one.
        state: the state of the decision that this bar asks for.

    Raises:
        DataValidationError: a price is not positive, or a step lost the whole capital.
    """
    at_ms, price, costs = bar
    realised: list[RealisedStep] = []
    still_open: list[Step] = []
    for step in standing.steps:
        next_state = state if step.next_state is None else step.next_state
        if step.entry_price is None or step.entry_ms is None:
            still_open.append(
                Step(step.state, step.action, step.exposure, step.change, step.fill, price, at_ms, costs, next_state)
            )
            continue
        paid = step.costs or costs
        cost = unit_cost(paid, symbol, step.entry_price) * step.change
        swap = swap_cost(paid, symbol, step.entry_price, step.exposure, step.entry_ms, at_ms)
        reward = step_log_return(step.exposure, step.entry_price, price, cost=cost, swap=swap)
        realised.append(RealisedStep(step.state, step.action, next_state, reward, cost + swap))
    return realised, tuple(still_open)
