"""Live agent: one prediction at a time: realise what it makes known, learn from it, choose, decide.

Only predictions of the live deployed version (`role` champion) with a price cause actions, and of one model where the
agent is bound to one; others are counted as observed. A bar not after its series' last one is counted as late, as
repeated or as out of order, and realises nothing. An abstention goes flat, unless the market is closed: then the
position is kept. A decision is filled by the next record of its series, at its open, and what it has earned is realised
at the one after, however long that takes: over a weekend it earns the gap and pays swap, nothing is scaled by time. A
closing record (its model was undeployed) ends its series: the agent goes flat, and since no bar follows, the last price
known stands for the open that is missing, as it does elsewhere.

The result depends on the order of the entries alone, not on how they were batched or how often the process was
restarted. An entry that fails leaves everything as it was.

Cost: some 10 µs an entry, of which settling a step takes a third.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ml_workbench_service.agents.checkpoint import FORMAT, Checkpoint, Counters
from ml_workbench_service.agents.positions import (
    Bar,
    FillPoint,
    Position,
    RealisedStep,
    open_step,
    realise,
    realise_all,
)
from ml_workbench_service.contracts.agents import AgentFamily, AgentMode, Decision, StepFill
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.costs import pip_size, resolved_costs, unit_cost
from ml_workbench_service.market.sizing import Held

MAX_REPLAY_SERIES = 256  # a replay's series are of no use after it; the longest unused go first, live series stay
_LEAST_EXACT_FIRST: tuple[StepFill, ...] = ("approximate", "record_close", "next_open", "next_close")
_ACTION_NAMES: dict[int, Literal["short", "flat", "long"]] = {-1: "short", 0: "flat", 1: "long"}


class Choice(NamedTuple):
    """The next position, whether it was drawn at random, and for how many bars it was held since it was decided."""

    position: float
    explored: bool = False
    held_bars: int = 0


FLAT_CHOICE = Choice(0)


class Agent(ABC):
    """Positions, counters and the last applied entry; a subclass says what it chooses, and what it learns.

    Modes: `learn` explores and learns, and only recommends (its decisions say `shadow`, size 0); `frozen` takes the
    best known action and its decisions are for trading, those on replays excepted; `shadow` is a frozen agent that is
    only watched (size 0).

    Args:
        agent_id: its name, in decisions and in its group's name.
        mode: see above.
        model_id: acts on this model's predictions only; None: on every live model's.
        costs: the agent's own costs, whose open fields take each pair's defaults; None means the model's, else the
            defaults.
    """

    family: AgentFamily

    def __init__(
        self, agent_id: str, *, mode: AgentMode, model_id: str | None = None, costs: Costs | None = None
    ) -> None:
        self.agent_id = agent_id
        self.mode: AgentMode = mode
        self.model_id = model_id
        self.counters = Counters()
        self._last_applied_id: str | None = None
        self._last_order = (-1, -1)
        self._costs = costs
        self._resolved: dict[str, Costs] = {}
        self._positions_by_series: dict[str, Position] = {}
        self._positions: dict[str, float] = {}

    @property
    def last_applied_id(self) -> str | None:
        """The newest entry that was applied; None before the first, and where a stream has begun anew."""
        return self._last_applied_id

    @last_applied_id.setter
    def last_applied_id(self, entry_id: str | None) -> None:
        self._last_applied_id = entry_id
        self._last_order = (-1, -1) if entry_id is None else id_order(entry_id)

    @property
    @abstractmethod
    def exploration_rate(self) -> float:
        """Share of random choices at the moment."""

    @abstractmethod
    def _state(self, record: PredictionRecord, position: float) -> int:
        """The number of what is known and held; may fail, changes nothing."""

    @abstractmethod
    def _learn(self, realised: Sequence[RealisedStep]) -> None:
        """Takes what steps have earned; must not fail."""

    @abstractmethod
    def _choose(self, record: PredictionRecord, state: int, held: Held) -> "Choice":
        """What follows from a record that does not abstain; must not fail."""

    @abstractmethod
    def _knowledge(self) -> dict[str, Any]:
        """The checkpoint's fields of this kind of agent."""

    def _acts_on(self, record: PredictionRecord) -> bool:
        """Whether the record may cause an action, if it has a price."""
        is_live = record.role == "champion" and record.sample != "historical"
        return is_live and self.model_id in (None, record.model_id)

    def has_applied(self, entry_id: str) -> bool:
        """Whether the entry (or a later one) was applied already; entries come in the order of their ids."""
        return id_order(entry_id) <= self._last_order

    def apply(self, entry_id: str, record: PredictionRecord) -> Decision | None:
        """Applies one entry; the decision it causes, or None where it is observed or late.

        Raises:
            DataValidationError: a pair without costs, a price that is not positive, or a step that lost everything;
                the agent is as before.
        """
        if record.is_closing and self._acts_on(record):
            return self._close(entry_id, record)
        price = record.price
        if price is None or not self._acts_on(record):
            self._count_one(entry_id, num_observed=1)
            return None
        key, at_ms = record.position_key, to_ms(record.as_of)
        standing = self._positions_by_series.get(key) or Position()
        bar_ms = None if record.bar_open is None else to_ms(record.bar_open)
        lateness = _lateness(standing, at_ms, bar_ms)
        if lateness is not None:
            repeated = int(lateness == 0)
            self._count_one(entry_id, num_late=1, num_repeated=repeated, num_out_of_order=1 - repeated)
            return None
        bar, held = self._bar(record, price, standing, at_ms, bar_ms), standing.position
        unit = unit_cost(bar.close.costs, record.symbol, price)
        state = self._state(record, held)
        realised, still_open = realise(standing, symbol=record.symbol, bar=bar, state=state)
        # Nothing below can fail: the entry is applied as a whole or not at all.
        self._learn(realised)
        chosen, exposure = Choice(held, held_bars=standing.held_bars), standing.exposure
        if not keeps_position(record):
            before = Held(held, standing.held_bars)
            chosen = FLAT_CHOICE if says_nothing(record) else self._choose(record, state, before)
            exposure = chosen.position * record.scaling_factor
        position, explored, held_bars = chosen
        step = open_step(
            standing,
            state=state,
            action=_side(position) + 1,
            exposure=exposure,
            fill=record.metadata.fill,
            bar=bar,
            rule=record.metadata.filling_rule,
        )
        steps, price_of_bar = (*still_open, step), bar.close.price
        self._keep(key, Position(at_ms, position, step.exposure, steps, bar_ms, price_of_bar, held_bars))
        self._positions[record.symbol] = position
        earned = sum([each.reward for each in realised]) if realised else None
        paid = sum([each.cost for each in realised]) if realised else None
        self._count_action(entry_id, realised, reward=earned or 0.0, cost=paid or 0.0)
        decided = _Decided(position, step.exposure, explored, unit * step.change, earned, paid, _fill_of(realised))
        return self._decision(record, price, decided)

    def _close(self, entry_id: str, record: PredictionRecord) -> Decision | None:
        """Ends the record's series: flat at the last price known, every step realised there."""
        key, at_ms = record.position_key, to_ms(record.as_of)
        standing = self._positions_by_series.get(key) or Position()
        price = record.price or standing.last_price
        is_late = standing.last_ms is not None and at_ms < standing.last_ms
        if price is None or is_late or not (standing.steps or standing.position):
            self._count_one(entry_id, num_observed=1)  # nothing is held, or the model is live again since
            return None
        costs = self._costs_at(record)
        unit = unit_cost(costs, record.symbol, price)
        end = FillPoint(at_ms, price, costs, False)
        bar, state = Bar(end, end), self._state(record, standing.position)
        step = open_step(standing, state=state, action=1, exposure=0.0, fill=record.metadata.fill, bar=bar)
        realised = realise_all((*standing.steps, step), symbol=record.symbol, bar=bar, state=state)
        # Nothing below can fail.
        self._learn(realised)
        self._keep(key, Position(at_ms, 0, 0.0, (), standing.last_bar_ms, price))
        self._positions[record.symbol] = 0
        earned, paid = sum([each.reward for each in realised]), sum([each.cost for each in realised])
        self._count_action(entry_id, realised, reward=earned, cost=paid)
        decided = _Decided(0, 0.0, False, unit * step.change, earned, paid, _fill_of(realised))
        return self._decision(record, price, decided)

    def reject(self, entry_id: str, record: PredictionRecord | None) -> None:
        """Steps over an entry that cannot be applied; its series begins anew, flat, since what it held cannot be paid.

        Without that, one wrong price that ruined a step would fail every later entry of the series.
        """
        if record is not None and self._positions_by_series.pop(record.position_key, None) is not None:
            self._show_position(record.symbol)
        self.last_applied_id = entry_id

    def checkpoint(
        self, *, given_up: Mapping[str, str] | None = None, term: int = 0, stream_epoch: str = ""
    ) -> Checkpoint:
        """Everything, as of the last applied entry: a copy, which is checked where it is read from disk."""
        return Checkpoint.model_construct(
            format=FORMAT,
            given_up=dict(given_up or {}),
            term=term,
            stream_epoch=stream_epoch,
            agent_id=self.agent_id,
            mode=self.mode,
            model_id=self.model_id,
            costs=self._costs,
            lanes=dict(self._positions_by_series),
            positions=dict(self._positions),
            counters=self.counters,
            last_applied_id=self._last_applied_id,
            saved_at=utc_now(),
            **self._knowledge(),
        )

    def _continue(self, checkpoint: Checkpoint) -> None:
        """Stands where the checkpoint was taken."""
        self.counters = checkpoint.counters
        self._positions_by_series = dict(checkpoint.lanes)
        self._positions = dict(checkpoint.positions)
        self.last_applied_id = checkpoint.last_applied_id

    def _show_position(self, symbol: str) -> None:
        """Of a symbol that lost a series: the position of the series used last, or none where it was the only one."""
        left = [standing.position for key, standing in self._positions_by_series.items() if key.split("|")[2] == symbol]
        self._positions.pop(symbol, None)
        if left:
            self._positions[symbol] = left[-1]

    def _costs_at(self, record: PredictionRecord) -> Costs:
        if self._costs is None and record.metadata.costs is not None:
            return record.metadata.costs
        symbol = record.symbol
        if symbol not in self._resolved:
            resolved = resolved_costs(symbol, self._costs)
            self._resolved[symbol] = Costs.model_validate(resolved.model_dump(exclude={"by_session"}))
        return self._resolved[symbol]

    def _bar(self, record: PredictionRecord, price: float, standing: Position, at_ms: int, bar_ms: int | None) -> Bar:
        """Where steps are filled at this record; the close before stands for an open that it lacks."""
        costs = self._costs_at(record)
        follows = record.prev_bar_open is not None and to_ms(record.prev_bar_open) == standing.last_bar_ms
        close = FillPoint(at_ms, price if record.close is None else record.close, costs, follows)
        if record.open is not None and bar_ms is not None:
            return Bar(FillPoint(bar_ms, record.open, self._opening_costs(record, costs), follows), close)
        if standing.last_price is None or standing.last_ms is None:
            return Bar(close, close)
        return Bar(FillPoint(standing.last_ms, standing.last_price, costs, False), close)

    def _opening_costs(self, record: PredictionRecord, costs: Costs) -> Costs:
        """The record's with the spread of its open; an agent's own costs hold at every moment."""
        if record.spread_open is None or self._costs is not None:
            return costs
        return Costs.model_construct(
            spread_pips=record.spread_open / pip_size(record.symbol),
            commission_bp=costs.commission_bp,
            slippage_bp=costs.slippage_bp,
            swap_long_pips=costs.swap_long_pips,
            swap_short_pips=costs.swap_short_pips,
        )

    def _keep(self, key: str, standing: Position) -> None:
        is_new = self._positions_by_series.pop(key, None) is None
        self._positions_by_series[key] = standing  # the newest last
        if is_new and len(self._positions_by_series) > MAX_REPLAY_SERIES:
            replays = [each for each in self._positions_by_series if not each.startswith("live|")]
            for each in replays[: max(0, len(replays) - MAX_REPLAY_SERIES)]:
                del self._positions_by_series[each]

    def _count_one(self, entry_id: str, **added: int) -> None:
        """One entry more, and what else is counted of it, by the counters' names."""
        old = self.counters
        more = {name: getattr(old, name) + num for name, num in added.items()}
        self.counters = replace(old, num_applied=old.num_applied + 1, **more)
        self.last_applied_id = entry_id

    def _count_action(self, entry_id: str, realised: Sequence[RealisedStep], *, reward: float, cost: float) -> None:
        old = self.counters
        self.counters = Counters(
            num_applied=old.num_applied + 1,
            num_before_reset=old.num_before_reset,
            num_actions=old.num_actions + 1,
            num_observed=old.num_observed,
            num_late=old.num_late,
            num_repeated=old.num_repeated,
            num_out_of_order=old.num_out_of_order,
            num_settled=old.num_settled + len(realised),
            num_approximate=old.num_approximate + sum([each.fill == "approximate" for each in realised]),
            cumulative_reward=old.cumulative_reward + reward,
            cumulative_cost=old.cumulative_cost + cost,
        )
        self.last_applied_id = entry_id

    def _decision(self, record: PredictionRecord, price: float, decided: "_Decided") -> Decision:
        trades = self.mode == "frozen" and record.source == "live"  # a replay is history
        return Decision.model_construct(
            agent_id=self.agent_id,
            prediction_id=record.prediction_id,
            model_id=record.model_id,
            version=record.version,
            symbol=record.symbol,
            lane=record.position_key,
            as_of=record.as_of,
            valid_until=record.valid_until,
            price=price,
            action=_ACTION_NAMES[_side(decided.position)],
            position=decided.position,
            size=decided.exposure if trades else 0.0,
            mode="frozen" if trades else "shadow",
            explored=decided.explored,
            expected_cost=decided.expected_cost,
            reward=decided.reward,
            cost=decided.cost,
            cumulative_reward=self.counters.cumulative_reward,
            exploration_rate=self.exploration_rate,
            fill=decided.fill,
        )


class _Decided(NamedTuple):
    """What came out of one record, before it is worded."""

    position: float
    exposure: float
    explored: bool
    expected_cost: float
    reward: float | None
    cost: float | None
    fill: StepFill | None


def _side(position: float) -> int:
    """-1 short, 0 flat, 1 long."""
    return (position > 0) - (position < 0)


def _lateness(standing: Position, at_ms: int, bar_ms: int | None) -> int | None:
    """None of a new bar; 0 where it is the series' last one again, 1 where it is an older one."""
    if standing.last_ms is not None and at_ms <= standing.last_ms:
        return int(at_ms < standing.last_ms)
    if bar_ms is not None and standing.last_bar_ms is not None and bar_ms <= standing.last_bar_ms:
        return int(bar_ms < standing.last_bar_ms)
    return None


def _fill_of(realised: Sequence[RealisedStep]) -> StepFill | None:
    """That of all steps which a record realised, the least exact first; there are two where the rule has changed."""
    found = {each.fill for each in realised}
    return next((each for each in _LEAST_EXACT_FIRST if each in found), None)


def keeps_position(record: PredictionRecord) -> bool:
    """Whether the model abstained for nothing but a closed market, where nobody could close a position either."""
    is_closed = record.status == "abstain" and record.abstain_reasons == ("market_closed",)
    return is_closed and record.metadata.filling_rule != "record_close"


def says_nothing(record: PredictionRecord) -> bool:
    """Whether the model abstained."""
    return record.status == "abstain" or record.prediction is None


def id_order(entry_id: str) -> tuple[int, int]:
    """What ids of stream entries are ordered by: their milliseconds, then their number within one."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)
