"""Positions: an agent's position on one series of predictions, and `realise`, which pays what a price makes known.

A series is (source, model, symbol, timeframe). Its *position* is the last one chosen, a signed size; its *exposure* is
the position times the record's `scaling_factor`, and is what costs, swap and reward are charged on. A chosen exposure
becomes a step that is filled and later realised:

    fill next_open    chosen at bar t, filled at open(t+1), earns open(t+1) → open(t+2), realised at bar t+2
    fill next_close   the same with the closes, which are fixings

"Next" is the series' next record: a position is held through whatever bars were dropped on the way, and pays for it;
such a step is `approximate`, and so is one whose record has no open: the close before stands for it. Over a weekend the
next open is Sunday's. A step pays the costs of the moment at which it is filled: the spread follows bars and sessions.

Rule `record_close`, of records and checkpoints of earlier versions: chosen at bar t, filled at its own price, earns
p(t) → p(t+1), realised at bar t+1. A step keeps the rule that it began with.

Positions and steps are values: nobody changes one, a bar makes new ones. They are plain slotted dataclasses (an agent
makes two with every record), which pydantic checks where a checkpoint is read.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ConfigDict

from ml_workbench_service.contracts.agents import Size, StepFill
from ml_workbench_service.contracts.contract import Finite
from ml_workbench_service.contracts.market import Costs, FillRule
from ml_workbench_service.contracts.prediction import FillingRule
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
    rule: FillingRule = "record_close"
    is_exact: bool = True  # whether it was filled at the price and bar that the rule names


@dataclass(slots=True)
class Position:
    """Where one series stands; `last_ms` is the newest bar's `as_of` (None: no bar yet), `last_bar_ms` its opening.

    `held_bars`: since the position was decided, of agents that follow a declared rule.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    last_ms: int | None = None
    position: Size = 0
    exposure: Finite = 0.0
    steps: tuple[Step, ...] = ()
    last_bar_ms: int | None = None
    last_price: Finite | None = None
    held_bars: int = 0


class FillPoint(NamedTuple):
    """Where steps begin and end: a moment, its price, what a fill there costs, and whether the rule names just it."""

    at_ms: int
    price: float
    costs: Costs
    is_exact: bool


class Bar(NamedTuple):
    """Where fills happen at the bar at hand."""

    open: FillPoint
    close: FillPoint

    def point(self, fill: FillRule, rule: FillingRule) -> FillPoint:
        """Where steps of this kind are filled."""
        return self.open if rule == "next_bar" and fill == "next_open" else self.close


class RealisedStep(NamedTuple):
    """What one step earned: its log return after costs, and the costs (trading and swap) as a fraction."""

    state: int
    action: int
    next_state: int
    reward: float
    cost: float
    fill: StepFill


def open_step(
    standing: Position,
    *,
    state: int,
    action: int,
    exposure: float,
    fill: FillRule,
    bar: Bar,
    rule: FillingRule = "next_bar",
) -> Step:
    """The step that a decision on the bar at hand opens."""
    change = abs(exposure - standing.exposure)
    if rule == "record_close" and fill == "next_open":
        at_ms, price, costs, _ = bar.close
        return Step(state, action, exposure, change, fill, price, at_ms, costs)
    return Step(state, action, exposure, change, fill, None, None, rule=rule)


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
    realised: list[RealisedStep] = []
    still_open: list[Step] = []
    for step in standing.steps:
        next_state = state if step.next_state is None else step.next_state
        at_ms, price, costs, is_exact = bar.point(step.fill, step.rule)
        if step.entry_price is None or step.entry_ms is None:
            still_open.append(
                Step(
                    step.state, step.action, step.exposure, step.change, step.fill,
                    price, at_ms, costs, next_state, step.rule, is_exact,
                )
            )  # fmt: skip
            continue
        paid = step.costs or costs
        cost = unit_cost(paid, symbol, step.entry_price) * step.change
        swap = swap_cost(paid, symbol, step.entry_price, step.exposure, step.entry_ms, at_ms)
        reward = step_log_return(step.exposure, step.entry_price, price, cost=cost, swap=swap)
        filled = step_fill(step, is_exact=is_exact)
        realised.append(RealisedStep(step.state, step.action, next_state, reward, cost + swap, filled))
    return realised, tuple(still_open)


def realise_all(steps: tuple[Step, ...], *, symbol: str, bar: Bar, state: int) -> list[RealisedStep]:
    """Ends a series: what its open steps earn up to its last price; those not filled yet are filled there too.

    Raises:
        DataValidationError: as `realise`.
    """
    realised: list[RealisedStep] = []
    while steps:
        more, steps = realise(Position(steps=steps), symbol=symbol, bar=bar, state=state)
        realised += more
    return realised


def step_fill(step: Step, *, is_exact: bool) -> StepFill:
    """What a realised step was filled by; `is_exact` of its end."""
    if step.rule == "record_close":
        return "record_close"
    return step.fill if step.is_exact and is_exact else "approximate"
