"""Records of a week with a Wednesday and a weekend inside, what steps on them earn, and an agent that applies them."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from tests.prediction_records import prediction_record

COSTS = Costs(spread_pips=1.2, commission_bp=0.4, slippage_bp=0.3, swap_long_pips=0.7, swap_short_pips=0.3)
NEW_YORK = ZoneInfo("America/New_York")


def nights(start: datetime, end: datetime) -> int:
    """Minute by minute: 17:00 New York from Monday to Friday, Wednesday three times."""
    days = 0
    moment = start
    while moment < end:
        moment += timedelta(minutes=15)
        local = moment.astimezone(NEW_YORK)
        if (local.hour, local.minute) == (17, 0) and local.weekday() < 5:
            days += 3 if local.weekday() == 2 else 1
    return days


def week_of_hours() -> list[datetime]:
    """Every open hour from Tuesday to the next Tuesday: a Wednesday roll and a weekend lie inside."""
    hours = [datetime(2025, 3, 4, tzinfo=UTC) + timedelta(hours=hour) for hour in range(7 * 24)]
    closed_from, closed_to = datetime(2025, 3, 7, 22, tzinfo=UTC), datetime(2025, 3, 9, 21, tzinfo=UTC)
    return [hour for hour in hours if not closed_from < hour <= closed_to]


def series(times: list[datetime], *, seed: int, **changes: Any) -> list[PredictionRecord]:
    """Records with a random price path and random forecasts, and an abstention now and then."""
    rng = np.random.default_rng(seed)
    prices = 1.1 * np.exp(np.cumsum(rng.normal(0, 0.001, len(times))))
    forecasts = rng.normal(0, 0.0002, len(times))
    abstains = rng.random(len(times)) < 0.05
    records = []
    for number, time in enumerate(times):
        abstention = {"status": "abstain", "prediction": None, "abstain_reasons": ("novel_input",)}
        body = {"prediction": float(forecasts[number])} | (abstention if abstains[number] else {}) | changes
        records.append(prediction_record(number, as_of=time, price=float(prices[number]), **body))
    return records


def applied(agent: QLearningAgent, records: list[PredictionRecord], *, first_id: int = 1) -> list[Decision]:
    decisions = [agent.apply(f"{first_id + number}-0", record) for number, record in enumerate(records)]
    return [decision for decision in decisions if decision is not None]


def expected_steps(
    decisions: list[Decision], *, pip: float, fill: str, scaling: list[float]
) -> list[tuple[float, float] | None]:
    """Reward and cost that each bar realises, from the decisions' positions, times and prices alone."""
    delay = 0 if fill == "next_open" else 1
    results: list[tuple[float, float] | None] = []
    for bar in range(len(decisions)):
        chosen = bar - 1 - delay
        if chosen < 0:
            results.append(None)
            continue
        start, end = decisions[bar - 1], decisions[bar]
        size = decisions[chosen].position * scaling[chosen]
        before = decisions[chosen - 1].position * scaling[chosen - 1] if chosen > 0 else 0.0
        cost = (1.2 * pip / 2 / start.price + 0.7e-4) * abs(size - before)
        swap = abs(size) * nights(start.as_of, end.as_of) * (0.7 if size > 0 else 0.3) * pip / start.price
        results.append((math.log(1 + size * (end.price / start.price - 1) - cost - swap), cost + swap))
    return results


def always_long(**changes: Any) -> QLearningAgent:
    """A frozen agent that is long wherever the model speaks."""
    agent = QLearningAgent("a", mode="frozen", **({"costs": COSTS} | changes))
    agent.table.values_SA[:, 2] = 1.0
    return agent
