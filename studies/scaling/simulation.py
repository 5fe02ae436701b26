"""Simulation: every question, run, write, parcel and turn of a deployment, by the rules of our code.

    arrivals ─► balancing over kept connections ─► replicas: one run a turn, of the first one's version
             ─► writes to the queue's streams, parcels to the hand-over ─► redis-server: what has come, a turn at a time
             ─► agents: 64 records a turn at most ─┬─ control process: 64 parcels a reading, a pause where there were
                                                   └─ fewer, rows saved once a second, a bounded stream

No resource asks one before it to wait, except by the hand-over's bound, so that each is played through after the one
before it. Costs are gamma variates with the measured means and variation.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ml_workbench_service.serving.inference_line import MOST_TOGETHER
from ml_workbench_service.serving.publisher import HIGH_LOAD, LINGER_S, LOAD_WINDOW_S
from ml_workbench_service.workflows.apply_handover import ENTRIES_AT_ONCE, GATHER_S, MOST_UNSAVED, SAVE_EVERY_S
from ml_workbench_service.workflows.run_agent import BATCH_SIZE
from studies.scaling.model import Plan

WARM_UP = 0.2
"""Share of the time that is played and not counted."""


class Runs(NamedTuple):
    """All replicas' runs of networks, by their end.

    Attributes:
        run_of_question: (Q,) which run answered it.
        is_busy: (R,) whether its replica's loop had little time just before.
    """

    end_s: np.ndarray
    replica: np.ndarray
    num: np.ndarray
    is_busy: np.ndarray
    run_of_question: np.ndarray
    busy: float


@dataclass(frozen=True)
class Found:
    """Figures of one simulation: shares of busy time, seconds.

    Attributes:
        handed_over: share of the parcels that entered the stream in the time that was played.
    """

    replica_busy: float
    answer_mean_s: float
    answer_p99_s: float
    runs_per_s: float
    redis_busy: float
    redis_mean_s: float
    redis_p99_s: float
    agent_busy: float
    agent_mean_s: float
    agent_p99_s: float
    control_busy: float
    handed_over_s: float
    handed_over: float


class Simulation:
    """One deployment under one load for so long.

    Args:
        seed: of arrivals, models, symbols and costs.
    """

    def __init__(self, plan: Plan, *, seconds: float, seed: int = 0) -> None:
        self._plan, self._seconds = plan, seconds
        self._chance = np.random.default_rng(seed)

    def play(self) -> Found:
        """Plays all of it through."""
        plan, chance = self._plan, self._chance
        num = chance.poisson(plan.demand.per_s * self._seconds)
        arrived_s = np.sort(chance.random(num) * self._seconds)
        runs = self._answered(arrived_s, chance.integers(plan.demand.num_models, size=num))
        answered_s = runs.end_s[runs.run_of_question]
        counts = arrived_s > WARM_UP * self._seconds
        took_s = (answered_s - arrived_s)[counts]
        shard = chance.integers(plan.layout.shards, size=num)
        write_s = self._written(runs)[runs.run_of_question]
        redis_busy, redis_s, published_s, parcel_s = self._stored(runs, write_s, shard)
        agent_busy, agent_s = self._applied(published_s, shard)
        control_busy, handed_over_s, share = self._handed_over(parcel_s, runs)
        return Found(
            runs.busy, float(took_s.mean()), float(np.quantile(took_s, 0.99)),
            len(runs.end_s) / self._seconds, redis_busy, float(redis_s.mean()), float(np.quantile(redis_s, 0.99)),
            agent_busy, float(agent_s.mean()), float(np.quantile(agent_s, 0.99)), control_busy, handed_over_s, share,
        )  # fmt: skip

    def _costs(self, mean_s: np.ndarray | float, cv2: float, num: int) -> np.ndarray:
        """Gamma variates of a mean; of a sum of items each mean's own."""
        if cv2 == 0:
            return np.broadcast_to(np.asarray(mean_s, dtype=float), num).copy()
        return np.asarray(mean_s) * self._chance.gamma(1 / cv2, cv2, num)

    def _answered(self, arrived_s: np.ndarray, model: np.ndarray) -> Runs:
        """The replicas' turns; a client keeps its connection, and so its replica."""
        c, layout = self._plan.constants, self._plan.layout
        replica = self._chance.integers(layout.replicas, size=len(arrived_s))
        run_cost_s = self._costs(c.run_s, c.answer_cv2, len(arrived_s))
        cost_s = self._costs(c.question_s, c.answer_cv2, len(arrived_s))
        ends, whose, nums, busy, members = [], [], [], [], []
        worked_s = 0.0
        for number in range(layout.replicas):
            mine = np.flatnonzero(replica == number)
            turns = _turns(arrived_s[mine], model[mine], cost_s[mine], run_cost_s[mine])
            starts = np.array([each[0] for each in turns])
            stops = np.array([each[1] for each in turns])
            worked_s += float((stops - starts).sum())
            ends.append(stops), whose.append(np.full(len(turns), number))
            nums.append(np.array([len(each[2]) for each in turns]))
            busy.append(_is_high(starts, stops, self._seconds))
            members += [mine[each[2]] for each in turns]
        order = np.argsort(np.concatenate(ends), kind="stable")
        place = np.empty(len(order), dtype=int)
        place[order] = np.arange(len(order))
        run_of_question = np.empty(len(arrived_s), dtype=int)
        for run, questions in zip(place, members, strict=True):
            run_of_question[questions] = run
        return Runs(
            np.concatenate(ends)[order], np.concatenate(whose)[order], np.concatenate(nums)[order],
            np.concatenate(busy)[order], run_of_question, worked_s / layout.replicas / self._seconds,
        )  # fmt: skip

    def _written(self, runs: Runs) -> np.ndarray:
        """When each run's records leave for the queue: at once, or with what a busy loop gathers."""
        written_s = runs.end_s.copy()
        for number in range(self._plan.layout.replicas):
            mine = np.flatnonzero(runs.replica == number)
            leaves_s = -1.0
            for run in mine:
                end_s = runs.end_s[run]
                if end_s <= leaves_s:
                    written_s[run] = leaves_s
                elif runs.is_busy[run]:
                    leaves_s = written_s[run] = end_s + LINGER_S
        return written_s

    def _stored(
        self, runs: Runs, write_s: np.ndarray, shard: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """The redis-servers' share of busy time, each command's time, when each record and each parcel was in."""
        c, layout = self._plan.constants, self._plan.layout
        writer = runs.replica[runs.run_of_question]
        calls, call_of, records = np.unique(
            np.column_stack([write_s, writer, shard]), axis=0, return_inverse=True, return_counts=True
        )
        rows = self._chance.binomial(runs.num, self._plan.demand.sampled)
        call_work = c.publish_call_s + records * (c.publish_record_s + c.consume_record_s)
        parcel_work = c.parcel_s + (1 + rows) * c.item_s
        self._rows = rows
        came_s = np.concatenate([calls[:, 0], runs.end_s])
        work_s = np.concatenate([call_work, parcel_work])
        work_s = self._costs(work_s, c.redis_cv2, len(work_s))
        server = np.concatenate([calls[:, 2].astype(int), runs.replica]) % layout.redis_servers
        left_s, worked_s = np.empty(len(came_s)), 0.0
        for number in range(layout.redis_servers):
            mine = np.flatnonzero(server == number)
            mine = mine[np.argsort(came_s[mine], kind="stable")]
            left_s[mine], busy_s = _gated(came_s[mine], work_s[mine], c.redis_loop_s, most=10_000)
            worked_s += busy_s
        counts = came_s > WARM_UP * self._seconds
        busy = worked_s / layout.redis_servers / self._seconds
        return busy, (left_s - came_s)[counts], left_s[: len(calls)][call_of.ravel()], left_s[len(calls) :]

    def _applied(self, published_s: np.ndarray, shard: np.ndarray) -> tuple[float, np.ndarray]:
        """The agents' share of busy time, and each record's time with them."""
        c, found, worked_s = self._plan.constants, [], 0.0
        for number in range(self._plan.layout.shards):
            came_s = np.sort(published_s[shard == number])
            work_s = self._costs(c.agent_record_s, c.answer_cv2, len(came_s))
            left_s, busy_s = _gated(came_s, work_s, c.agent_call_s, most=BATCH_SIZE)
            worked_s += busy_s
            found.append((left_s - came_s)[came_s > WARM_UP * self._seconds])
        return worked_s / self._plan.layout.shards / self._seconds, np.concatenate(found)

    def _handed_over(self, parcel_s: np.ndarray, runs: Runs) -> tuple[float, float, float]:
        """The control process: its share of busy time, a parcel's mean time, the share that entered the stream."""
        c, plan = self._plan.constants, self._plan
        order = np.argsort(parcel_s, kind="stable")
        came_s = parcel_s[order]
        apply_s = c.apply_parcel_s + c.apply_drop_s + self._rows[order] * c.apply_row_s
        write_s = self._rows[order] * c.write_row_s
        slower = 1 / max(1 - plan.events_work, 1e-3)  # the events of workers take their part of the core
        now_s = saved_s = worked_s = 0.0
        read = trimmed = num = 0
        took_s: list[float] = []
        while now_s < self._seconds and read < len(came_s):
            room = trimmed + plan.layout.handover_entries
            there = min(int(np.searchsorted(came_s, now_s, side="right")), room)
            num = min(there - read, ENTRIES_AT_ONCE)
            if num:
                work_s = float(apply_s[read : read + num].sum()) * slower
                worked_s, now_s = worked_s + work_s, now_s + work_s
                took_s.append(float((now_s - came_s[read : read + num]).mean()))
                read += num
            if read > trimmed and (now_s - saved_s > SAVE_EVERY_S or read - trimmed >= MOST_UNSAVED):
                work_s = float(write_s[trimmed:read].sum()) * slower
                worked_s, now_s, saved_s, trimmed = worked_s + work_s, now_s + work_s, now_s, read
            if num < ENTRIES_AT_ONCE:
                next_s = came_s[read] if read < min(len(came_s), room) else saved_s + SAVE_EVERY_S + 1e-6
                now_s = now_s + GATHER_S if num else max(now_s + 1e-6, float(next_s))
        in_time = int(np.searchsorted(came_s, self._seconds))
        kept = took_s[int(WARM_UP * len(took_s)) :]
        return worked_s / self._seconds + plan.events_work, float(np.mean(kept)), min(read, in_time) / max(in_time, 1)


def _turns(
    arrived_s: np.ndarray, model: np.ndarray, cost_s: np.ndarray, run_cost_s: np.ndarray
) -> list[tuple[float, float, list[int]]]:
    """One replica's runs: beginning, end and questions; as `InferenceLine` takes them."""
    arrivals, models = arrived_s.tolist(), model.tolist()
    costs, run_costs = cost_s.tolist(), run_cost_s.tolist()
    waiting: deque[int] = deque()
    turns: list[tuple[float, float, list[int]]] = []
    now_s, following, num = 0.0, 0, len(arrivals)
    while following < num or waiting:
        if not waiting:
            now_s = max(now_s, arrivals[following])
        while following < num and arrivals[following] <= now_s:
            waiting.append(following)
            following += 1
        first = waiting.popleft()
        taken, left = [first], deque[int]()
        while waiting and len(taken) < MOST_TOGETHER:
            each = waiting.popleft()
            (taken if models[each] == models[first] else left).append(each)
        waiting.extendleft(reversed(left))
        end_s = now_s + run_costs[first] + sum(costs[each] for each in taken)
        turns.append((now_s, end_s, taken))
        now_s = end_s
    return turns


def _is_high(starts_s: np.ndarray, stops_s: np.ndarray, seconds: float) -> np.ndarray:
    """Of each run, whether its loop worked for most of the window before the one that it ends in."""
    num = int(max(seconds, stops_s.max(initial=0.0)) / LOAD_WINDOW_S) + 2
    worked_s = np.zeros(num)
    first, last = (starts_s / LOAD_WINDOW_S).astype(int), (stops_s / LOAD_WINDOW_S).astype(int)
    border_s = (first + 1) * LOAD_WINDOW_S
    np.add.at(worked_s, first, np.minimum(stops_s, border_s) - starts_s)
    np.add.at(worked_s, last, np.maximum(stops_s - np.maximum(border_s, starts_s), 0.0) * (last > first))
    return np.asarray(worked_s[np.maximum(last - 1, 0)] >= HIGH_LOAD * LOAD_WINDOW_S)


def _gated(came_s: np.ndarray, work_s: np.ndarray, turn_s: float, *, most: int) -> tuple[np.ndarray, float]:
    """When each leaves a server that ends its turn for all in it together, and the seconds that it worked."""
    arrivals = came_s.tolist()
    until = np.concatenate([[0.0], np.cumsum(work_s)]).tolist()
    left_s = np.empty(len(arrivals))
    now_s, worked_s, place = 0.0, 0.0, 0
    while place < len(arrivals):
        now_s = max(now_s, arrivals[place])
        end = place + 1
        while end < len(arrivals) and end - place < most and arrivals[end] <= now_s:
            end += 1
        took_s = turn_s + until[end] - until[place]
        now_s, worked_s = now_s + took_s, worked_s + took_s
        left_s[place:end] = now_s
        place = end
    return left_s, worked_s
