"""Tables that no training makes: many rows, trials, an agent's decisions and table, live predictions."""

import math
import random

from ml_workbench_figures.inputs import Columns
from ml_workbench_service.agents.q_table import QTable, StateBins
from ml_workbench_service.contracts.agents import Beginning, QLearningHyperparameters
from ml_workbench_service.contracts.desk_report import Estimate
from ml_workbench_service.contracts.importance import ColumnImportance, ImportanceReport

HOUR_MS = 3_600_000
BEGIN_MS = 1_577_836_800_000
"""2020-01-01."""
SPIKE_ROW, SPIKE = 71_234, 0.05


def many_rows(num: int = 100_000, *, symbols: tuple[str, ...] = ("EUR/USD",)) -> Columns:
    """Rows of a forecast in three parts, by part, time and symbol; one outcome sticks out far."""
    chance = random.Random(7)
    found: dict[str, list[object]] = {
        name: []
        for name in (
            "part", "as_of", "symbol", "price", "realised", "prediction", "lower", "upper", "direction", "confidence",
            "status", "position", "gross", "cost", "net", "p_sell", "p_hold", "p_buy",
        )
    }  # fmt: skip
    price = dict.fromkeys(symbols, 1.1)
    for row in range(num):
        symbol, step = symbols[row % len(symbols)], row // len(symbols)
        forecast = chance.gauss(0, 0.0003)
        move = 0.3 * forecast + chance.gauss(0, 0.001) + (SPIKE if row == SPIKE_ROW else 0.0)
        price[symbol] *= math.exp(move)
        position = 1 if forecast > 0.0001 else -1 if forecast < -0.0001 else 0
        gross, cost = position * move, 0.00004 * abs(position)
        is_silent = row % 97 == 0
        up = min(max(0.33 + forecast * 400, 0.05), 0.6)
        values = (
            "validation" if row < num // 5 else "calibration" if row < 2 * num // 5 else "test",
            BEGIN_MS + step * HOUR_MS, symbol, price[symbol], move, None if is_silent else forecast,
            None if is_silent else forecast - 0.0016, None if is_silent else forecast + 0.0016,
            "buy" if position > 0 else "sell" if position < 0 else "hold",
            None if is_silent else 0.5 + abs(forecast) * 200,
            "abstain" if is_silent else "ok", position, gross, cost, gross - cost, 0.66 - up, 0.34, up,
        )  # fmt: skip
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return found


def measured_importance(num: int = 6) -> ImportanceReport:
    """Of columns of which the first adds much, the second a little, and the others nothing; one has no error."""
    chance = random.Random(11)
    columns = []
    for place in range(num):
        value = (0.031, 0.006)[place] if place < 2 else chance.gauss(0, 0.001)
        error = None if place == num - 1 else 0.0015
        p_value = None if error is None else 0.5 * math.erfc(value / error / math.sqrt(2))
        columns.append(
            ColumnImportance(
                name=f"zscore(close, {10 * place})" if place % 2 else f"column_{place}",
                loss_added=Estimate(value=2e-6 * value, error=None if error is None else 2e-6 * error, p_value=p_value,
                                    num_rows=4000),
                share_of_loss=value,
                adjusted_p_value=None if p_value is None else min(1.0, num * p_value),
            )
        )  # fmt: skip
    return ImportanceReport(
        model_id="mine", version="1.0.0", part="calibration", loss="squared_error", mean_loss=2e-6, num_rows=4000,
        num_repeats=10, block_bars=25, columns=tuple(columns), num_counted=0,
    )  # fmt: skip


def trials(num: int = 60) -> Columns:
    """Of a search over four hyper-parameters; some pruned, one failed."""
    chance = random.Random(3)
    rates = [10 ** chance.uniform(-4, -1) for _ in range(num)]
    units = [chance.choice([8, 16, 32, 64]) for _ in range(num)]
    cells = [chance.choice(["gru", "lstm", "transformer"]) for _ in range(num)]
    lookbacks = [chance.randint(4, 48) for _ in range(num)]
    scores = [0.02 - 0.006 * (math.log10(rate) + 2.5) ** 2 + chance.gauss(0, 0.004) for rate in rates]
    states = ["failed" if row == 5 else "pruned" if row % 9 == 4 else "complete" for row in range(num)]
    return {
        "number": list(range(num)), "state": states,
        "value": [None if state == "failed" else score for state, score in zip(states, scores, strict=True)],
        "params.learning_rate": rates, "params.units": units, "params.cell": cells, "params.lookback": lookbacks,
    }  # fmt: skip


def decisions(num: int = 5_000) -> Columns:
    """Of an agent that explores less and less."""
    chance = random.Random(11)
    total, rewards, costs = 0.0, [], []
    for _ in range(num):
        cost = chance.choice([0.0, 0.0, 0.00005])
        total += chance.gauss(0.00002, 0.0008) - cost
        rewards.append(total)
        costs.append(cost)
    return {
        "as_of": [BEGIN_MS + row * HOUR_MS for row in range(num)], "cumulative_reward": rewards, "cost": costs,
        "exploration_rate": [max(0.02, 0.999**row) for row in range(num)],
    }  # fmt: skip


def q_table(num: int = 4_000) -> Beginning:
    """What a Q-learning agent has learnt after so many steps of noise."""
    chance, bins = random.Random(2), StateBins()
    table = QTable(QLearningHyperparameters(), bins)
    state = bins.state_of(0.0, 3.0, 0)
    for _ in range(num):
        action, _ = table.choose(state)
        following = bins.state_of(chance.gauss(0, 0.15), chance.uniform(2, 5), action - 1)
        table.learn(state, action, reward=chance.gauss(0, 0.001) * (action - 1), next_state=following)
        state = following
    return Beginning(
        strength_edges=bins.strength_edges, width_edges=bins.width_edges, values_SA=table.values_SA.tolist(),
        visits_SA=table.visits_SA.tolist(),
    )  # fmt: skip


def predictions(num: int = 300) -> Columns:
    """Live ones, newest first, the newest ten without an outcome yet."""
    chance = random.Random(5)
    forecasts = [chance.gauss(0, 0.0003) for _ in range(num)]
    return {
        "as_of": [BEGIN_MS + row * HOUR_MS for row in reversed(range(num))], "symbol": ["EUR/USD"] * num,
        "target": ["price_change_1h"] * num, "prediction": forecasts,
        "interval.level": [0.9] * num, "interval.lower": [each - 0.0016 for each in forecasts],
        "interval.upper": [each + 0.0016 for each in forecasts],
        "outcome.realised": [None if row < 10 else each + chance.gauss(0, 0.001) for row, each in enumerate(forecasts)],
    }  # fmt: skip
