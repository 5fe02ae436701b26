"""`Learner`: applies one prediction at a time: settle what it makes known, learn from it, choose, decide.

Only predictions of the live deployed version (`role` champion) with a price cause actions; others are counted as
observed. A bar not after its lane's last one is counted as late and settles nothing. An abstention goes flat.

The result depends on the order of the entries alone, not on how they were batched or how often the process was
restarted. An entry that fails leaves everything as it was.
"""

from ml_workbench_service.agents.checkpoint import Checkpoint, Counters
from ml_workbench_service.agents.lanes import Lane, Settlement, open_step, settle
from ml_workbench_service.agents.q_table import FLAT, POSITIONS, USUAL_WIDTH, QTable, StateBins
from ml_workbench_service.contracts.agents import AgentMode, Decision, QLearningHyperparameters
from ml_workbench_service.contracts.contract import to_ms, utc_now
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.market.costs import resolved_costs

MAX_REPLAY_LANES = 256  # a replay's lanes are of no use after it; the longest unused go first, live lanes stay
_ACTION_NAMES = {-1: "short", 0: "flat", 1: "long"}


class Learner:
    """One agent's mind.

    Modes: `learn` explores and learns, and only recommends (its decisions say `shadow`, size 0); `frozen` takes the
    best known action and its decisions are for trading; `shadow` is a frozen agent that is only watched (size 0).

    Args:
        agent_id: its name, in decisions and in its group's name.
        mode: see above.
        hyperparameters: of the Q table.
        costs: the agent's own costs, whose open fields take each pair's defaults; None means the model's, else the
            defaults.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        mode: AgentMode = "learn",
        hyperparameters: QLearningHyperparameters | None = None,
        costs: Costs | None = None,
        bins: StateBins | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.mode = mode
        self.table = QTable(hyperparameters or QLearningHyperparameters(), bins)
        self.counters = Counters()
        self.last_applied_id: str | None = None
        self._costs = costs
        self._resolved: dict[str, Costs] = {}
        self._lanes: dict[str, Lane] = {}
        self._positions: dict[str, int] = {}

    def has_applied(self, entry_id: str) -> bool:
        """Whether the entry (or a later one) was applied already; entries come in the order of their ids."""
        return self.last_applied_id is not None and _id_order(entry_id) <= _id_order(self.last_applied_id)

    def apply(self, entry_id: str, record: PredictionRecord) -> Decision | None:
        """Applies one entry; the decision it causes, or None where it is observed or late.

        Raises:
            DataValidationError: a pair without costs, a price that is not positive, or a step that lost everything;
                the learner is as before.
        """
        if record.role != "champion" or record.price is None:
            self._count(entry_id, num_observed=1)
            return None
        lane = self._lanes.get(record.lane, Lane())
        at_ms = to_ms(record.as_of)
        if lane.last_ms is not None and at_ms <= lane.last_ms:
            self._count(entry_id, num_late=1)
            return None
        costs = (
            record.metadata.costs if self._costs is None and record.metadata.costs else self._costs_of(record.symbol)
        )
        state = self._state(record, lane.position)
        settled, still_open = settle(
            lane, symbol=record.symbol, costs=costs, price=_price(record), at_ms=at_ms, state=state
        )
        # Nothing below can fail: the entry is applied as a whole or not at all.
        if self.mode == "learn":
            for step in settled:
                self.table.learn(step.state, step.action, reward=step.reward, next_state=step.next_state)
        action, explored = self._choose(state, record)
        exposure = POSITIONS[action] * record.scaling_factor
        step_opened = open_step(
            lane,
            state=state,
            action=action,
            exposure=exposure,
            fill=record.metadata.fill,
            price=record.price,
            at_ms=at_ms,
            costs=costs,
        )
        self._keep(
            record.lane,
            Lane(last_ms=at_ms, position=POSITIONS[action], exposure=exposure, steps=(*still_open, step_opened)),
        )
        self._positions[record.symbol] = POSITIONS[action]
        self._count(
            entry_id,
            num_actions=1,
            num_settled=len(settled),
            reward=sum(step.reward for step in settled),
            cost=sum(step.cost for step in settled),
        )
        return self._decision(record, POSITIONS[action], explored=explored, settled=settled)

    def reject(self, entry_id: str, record: PredictionRecord | None) -> None:
        """Steps over an entry that cannot be applied; its lane begins anew, flat, since what it held cannot be paid.

        Without that, one wrong price that ruined a step would fail every later entry of the lane.
        """
        if record is not None:
            self._lanes.pop(record.lane, None)
        self.last_applied_id = entry_id

    def _costs_of(self, symbol: str) -> Costs:
        if symbol not in self._resolved:
            resolved = resolved_costs(symbol, self._costs)
            self._resolved[symbol] = Costs.model_validate(resolved.model_dump(exclude={"by_session"}))
        return self._resolved[symbol]

    def _state(self, record: PredictionRecord, position: int) -> int:
        if _abstains(record) or record.prediction is None:
            return self.table.bins.state_of(None, None, position)
        if record.metadata.strength is not None:  # no forecast: the model says itself which way it leans
            return self.table.bins.state_of(record.metadata.strength, None, position)
        width = None if record.interval is None else record.interval.upper - record.interval.lower
        scale = record.metadata.volatility
        if not scale and width:
            scale = width / USUAL_WIDTH  # no volatility came along: what a usual interval of this width would have
        if not scale or scale < 0:
            return self.table.bins.state_of(0.0, None, position)  # of unknown strength, so it says nothing
        return self.table.bins.state_of(record.prediction / scale, None if width is None else width / scale, position)

    def _choose(self, state: int, record: PredictionRecord) -> tuple[int, bool]:
        if _abstains(record) or record.prediction is None:
            return FLAT, False
        if self.mode == "learn":
            return self.table.choose(state)
        return self.table.greedy(state), False

    def _keep(self, name: str, lane: Lane) -> None:
        self._lanes.pop(name, None)
        self._lanes[name] = lane
        replays = (
            [key for key in self._lanes if not key.startswith("live|")] if len(self._lanes) > MAX_REPLAY_LANES else []
        )
        for key in replays[: max(0, len(replays) - MAX_REPLAY_LANES)]:
            del self._lanes[key]

    def _count(
        self,
        entry_id: str,
        *,
        num_actions: int = 0,
        num_observed: int = 0,
        num_late: int = 0,
        num_settled: int = 0,
        reward: float = 0.0,
        cost: float = 0.0,
    ) -> None:
        old = self.counters
        self.counters = Counters(
            num_applied=old.num_applied + 1,
            num_actions=old.num_actions + num_actions,
            num_observed=old.num_observed + num_observed,
            num_late=old.num_late + num_late,
            num_settled=old.num_settled + num_settled,
            cumulative_reward=old.cumulative_reward + reward,
            cumulative_cost=old.cumulative_cost + cost,
        )
        self.last_applied_id = entry_id

    def _decision(
        self, record: PredictionRecord, position: int, *, explored: bool, settled: list[Settlement]
    ) -> Decision:
        trades = self.mode == "frozen"
        return Decision(
            agent_id=self.agent_id,
            prediction_id=record.prediction_id,
            lane=record.lane,
            as_of=record.as_of,
            price=_price(record),
            action=_ACTION_NAMES[position],
            position=position,
            size=position * record.scaling_factor if trades else 0.0,
            mode="frozen" if trades else "shadow",
            explored=explored,
            reward=sum(step.reward for step in settled) if settled else None,
            cost=sum(step.cost for step in settled) if settled else None,
            cumulative_reward=self.counters.cumulative_reward,
            exploration_rate=self.table.exploration_rate,
        )

    def checkpoint(self) -> Checkpoint:
        """Everything, as of the last applied entry."""
        return Checkpoint(
            agent_id=self.agent_id,
            mode=self.mode,
            hyperparameters=self.table.hyperparameters,
            costs=self._costs,
            strength_edges=self.table.bins.strength_edges,
            width_edges=self.table.bins.width_edges,
            values_SA=self.table.values_SA.tolist(),
            visits_SA=self.table.visits_SA.tolist(),
            exploration_rate=self.table.exploration_rate,
            random_state=self.table.random_state,
            lanes=dict(self._lanes),
            positions=dict(self._positions),
            counters=self.counters,
            last_applied_id=self.last_applied_id,
            saved_at=utc_now(),
        )

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "Learner":
        """The learner that continues exactly where the checkpoint was taken."""
        learner = cls(
            checkpoint.agent_id,
            mode=checkpoint.mode,
            hyperparameters=checkpoint.hyperparameters,
            costs=checkpoint.costs,
            bins=StateBins(checkpoint.strength_edges, checkpoint.width_edges),
        )
        learner.table.values_SA[:] = checkpoint.values_SA
        learner.table.visits_SA[:] = checkpoint.visits_SA
        learner.table.exploration_rate = checkpoint.exploration_rate
        learner.table.random_state = checkpoint.random_state
        learner.counters = checkpoint.counters
        learner.last_applied_id = checkpoint.last_applied_id
        learner._lanes = dict(checkpoint.lanes)
        learner._positions = dict(checkpoint.positions)
        return learner


def _abstains(record: PredictionRecord) -> bool:
    return record.status == "abstain"


def _price(record: PredictionRecord) -> float:
    assert record.price is not None
    return record.price


def _id_order(entry_id: str) -> tuple[int, int]:
    milliseconds, sequence = entry_id.split("-")
    return int(milliseconds), int(sequence)
