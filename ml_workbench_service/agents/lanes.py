"""`Lane`: one agent's position on one series of predictions, and `settle`, which pays what a later price makes known.

A lane is (source, model, symbol, timeframe). Its *position* is the last one chosen (-1, 0, 1); its *exposure* is the
position times the record's `scaling_factor`, and is what costs, swap and reward are charged on. A chosen exposure
becomes a step that is filled and later settled:

    fill next_open    chosen at bar t, filled there (the next open), earns p(t) → p(t+1), settled at bar t+1
    fill next_close   chosen at bar t, filled at p(t+1) (the next fixing), earns p(t+1) → p(t+2), settled at bar t+2

"Next" is the lane's next record: a position is held through whatever bars were dropped on the way, and pays for it.
A step pays the costs of the bar at which it is filled: the spread follows bars and sessions.
"""

from dataclasses import dataclass

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.market import Costs, FillRule
from ml_workbench_service.market.costs import step_log_return, swap_cost, unit_cost


class Step(Contract):
    """One chosen exposure on its way to its reward."""

    state: int
    action: int
    exposure: Finite
    change: Finite  # |exposure - the exposure before|
    fill: FillRule
    entry_price: Finite | None  # None: not filled yet
    entry_ms: int | None
    costs: Costs | None = None  # of the fill; None: not filled yet, or a checkpoint from before they were kept
    next_state: int | None  # the state of the lane's next decision, once it is known


class Lane(Contract):
    """Where one lane stands; `last_ms` is the newest bar's `as_of` (None: no bar yet)."""

    last_ms: int | None = None
    position: int = 0
    exposure: Finite = 0.0
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Settlement:
    """What one step earned: its log return after costs, and the costs (trading and swap) as a fraction."""

    state: int
    action: int
    next_state: int
    reward: float
    cost: float


def open_step(
    lane: Lane,
    *,
    state: int,
    action: int,
    exposure: float,
    fill: FillRule,
    price: float,
    at_ms: int,
    costs: Costs,
) -> Step:
    """The step that a decision on the bar at hand opens."""
    filled = fill == "next_open"
    return Step(
        state=state,
        action=action,
        exposure=exposure,
        change=abs(exposure - lane.exposure),
        fill=fill,
        entry_price=price if filled else None,
        entry_ms=at_ms if filled else None,
        costs=costs if filled else None,
        next_state=None,
    )


def settle(
    lane: Lane, *, symbol: str, costs: Costs, price: float, at_ms: int, state: int
) -> tuple[list[Settlement], tuple[Step, ...]]:
    """What the bar at hand settles, and the steps that stay open; changes nothing.

    Args:
        lane: the lane before this bar.
        symbol: whose pips the costs are in.
        costs: resolved costs at that bar; steps that it fills pay them.
        price: the bar's price.
        at_ms: the bar's `as_of`, later than the lane's last one.
        state: the state of the decision that this bar asks for.

    Raises:
        DataValidationError: a price is not positive, or a step lost the whole capital.
    """
    settled: list[Settlement] = []
    still_open: list[Step] = []
    for step in lane.steps:
        next_state = state if step.next_state is None else step.next_state
        if step.entry_price is None or step.entry_ms is None:
            still_open.append(
                step.model_copy(
                    update={"entry_price": price, "entry_ms": at_ms, "costs": costs, "next_state": next_state}
                )
            )
            continue
        paid = step.costs or costs
        cost = unit_cost(paid, symbol, step.entry_price) * step.change
        swap = swap_cost(paid, symbol, step.entry_price, step.exposure, step.entry_ms, at_ms)
        reward = step_log_return(step.exposure, step.entry_price, price, cost=cost, swap=swap)
        settled.append(Settlement(step.state, step.action, next_state, reward, cost + swap))
    return settled, tuple(still_open)
