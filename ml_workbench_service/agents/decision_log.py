"""Decision log: the original specification's line in `rl_training.log`: action, reward, cumulative reward."""

import logging
from collections.abc import Sequence

from common_lib.logging import RL_LOGGER, log_events
from ml_workbench_service.contracts.agents import Decision

rl_log = logging.getLogger(RL_LOGGER)


def log_decisions(decisions: Sequence[Decision]) -> None:
    """A line each, written at once."""
    if not rl_log.isEnabledFor(logging.INFO):
        return
    names = ("agent_id", "prediction_id", "lane", "position", "mode", "explored", "cost", "exploration_rate")
    events = [
        (
            f"Action={each.action}, Reward={each.reward}, Cumulative Reward={each.cumulative_reward}",
            each.agent_id,
            each.prediction_id,
            each.lane,
            each.position,
            each.mode,
            each.explored,
            each.cost,
            round(each.exploration_rate, 6),
        )
        for each in decisions
    ]
    log_events(rl_log, logging.INFO, names, events)
