"""Learnt Q table of an agent, read from its checkpoints: of several processes the mean, weighted by visits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common_lib.exceptions import ConflictError, SeriesNotFoundError
from ml_workbench_figures.state_bins import ACTIONS, best_action, state_words
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.agents import AgentDefinition, Beginning


def learnt_table(agent_id: str, checkpoints: Sequence[Checkpoint]) -> Beginning:
    """The table that an agent's processes have learnt; all zeros where there was nothing to learn from yet.

    Args:
        checkpoints: of one Q-learning agent, at least one.

    Raises:
        ConflictError: its processes sort records into different bins.
    """
    if len({(each.strength_edges, each.width_edges) for each in checkpoints}) > 1:
        raise ConflictError(
            f"the shards of {agent_id} sort records into different bins, so that they have no common table; reset it"
        )
    visits_PSA = [np.array(each.visits_SA, dtype=np.int64) for each in checkpoints]
    values_SA = np.array(checkpoints[0].values_SA)
    visits_SA = np.sum(visits_PSA, axis=0)
    if len(checkpoints) > 1:
        pairs = zip(checkpoints, visits_PSA, strict=True)
        weighted_SA = sum(np.array(each.values_SA) * visits for each, visits in pairs)
        values_SA = np.where(visits_SA > 0, weighted_SA / np.maximum(visits_SA, 1), 0.0)
    return Beginning(
        strength_edges=checkpoints[0].strength_edges,
        width_edges=checkpoints[0].width_edges,
        values_SA=values_SA.tolist(),
        visits_SA=visits_SA.tolist(),
    )


def check_tabular(definition: AgentDefinition, checkpoints: Sequence[Checkpoint]) -> None:
    """That there is a table to read.

    Raises:
        SeriesNotFoundError: the agent executes a policy.
        ConflictError: it has not begun.
    """
    if definition.family != "q_learning":
        raise SeriesNotFoundError(
            f"{definition.id} (family {definition.family}) follows {definition.model_id} and learns no Q table; its "
            f"decisions are at GET /api/v1/agents/{definition.id}/decisions"
        )
    if not checkpoints:
        raise ConflictError(
            f"{definition.id} has read nothing yet and so has no checkpoint; look again once it runs beside a deployed "
            "model"
        )


def table_rows(table: Beginning) -> list[dict[str, Any]]:
    """A row a state: its parts in words, what would be chosen, values and visits by action."""
    words = state_words(table.strength_edges, table.width_edges)
    lines = zip(words, table.values_SA, table.visits_SA, strict=True)
    return [
        {
            "state": state,
            **named._asdict(),
            "best": best_action(values),
            "visits": sum(visits),
            **{f"value_{action}": value for action, value in zip(ACTIONS, values, strict=True)},
            **{f"visits_{action}": num for action, num in zip(ACTIONS, visits, strict=True)},
        }
        for state, (named, values, visits) in enumerate(lines)
    ]
