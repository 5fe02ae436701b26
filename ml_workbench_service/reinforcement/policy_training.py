"""One course of training for every policy: epochs of trading, a walk over the part `stop` after each, the best kept.

An epoch is about as many decisions as the training part has rows, in whole rollouts. The walk is greedy and net of all
costs; training ends when `patience` epochs brought no better one. After an epoch everything that decides the rest goes
into the checkpoint, so that a killed training ends with the same weights. One thread: more change nothing for networks
of this size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from common_lib.exceptions import TrainingError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.checkpoint import Checkpoint
from ml_workbench_service.learning.family import Assignment, Trained
from ml_workbench_service.learning.policy_checkpoint import PolicyCheckpoint, Standing
from ml_workbench_service.learning.policy_environment import MarketEnvironment
from ml_workbench_service.learning.policy_family import Market
from ml_workbench_service.learning.policy_graph import layers_graph
from ml_workbench_service.learning.policy_network import PolicyNetwork
from ml_workbench_service.market.environment import Walk, walk


class Learner(Protocol):
    """An algorithm that learns from rollouts: `LanesPpo`, `LanesDqn`."""

    network: PolicyNetwork
    env: Any

    @property
    def rollout_size(self) -> int:
        """Decisions of a rollout."""
        ...

    def rollout(self) -> None:
        """Trades and learns."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything that decides the rest."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long."""

    epochs: int
    patience: int


def train(
    kind: Any,
    assignment: Assignment,
    *,
    hyperparameters: Any,
    outputs: tuple[str, ...],
    accelerator: Accelerator,
    report: Report,
) -> Trained:
    """Trains a policy; the same seed gives the same weights on the same hardware.

    Args:
        kind: `LanesPpo` or `LanesDqn`.
        assignment: data, costs, seed, and where to leave checkpoints.
        hyperparameters: the family's.
        outputs: names of the three outputs.
        accelerator: where.
        report: hears of every epoch.

    Raises:
        TrainingError: the network's answers are no numbers any more.
        JobCancelled: somebody asked for it, within one step.
    """
    device = accelerator.for_training()
    if device.type == "cpu":
        torch.set_num_threads(1)
    hyper, windows, market = hyperparameters, assignment.windows, Market.of(assignment)
    environment = MarketEnvironment(
        market,
        lookback=windows.lookback,
        num_lanes=hyper.lanes,
        episode_length=hyper.episode_length,
        seed=assignment.seed,
    )
    learner = kind(
        environment,
        hyper,
        is_level_F=windows.scaler.is_level_F,
        total=hyper.epochs * len(market.train),
        seed=assignment.seed,
        device=device,
        report=report,
    )
    standing = fit(
        learner, market, Schedule(hyper.epochs, hyper.patience), report=report, checkpoint=assignment.checkpoint
    )
    return _trained(learner.network.cpu(), assignment, outputs=outputs, standing=standing)


def fit(
    learner: Learner, market: Market, schedule: Schedule, *, report: Report, checkpoint: Checkpoint | None
) -> Standing:
    """Fits the learner's network in place and leaves it with the best epoch's weights."""
    standing = Standing(kept=learner.network.weights())
    saved = None if checkpoint is None else PolicyCheckpoint(checkpoint)
    if saved is not None and saved.restore(learner, standing):
        report.say(f"going on after epoch {standing.epoch}")
    rollouts = max(1, round(len(market.train) / learner.rollout_size))
    while standing.epoch < schedule.epochs and standing.epoch - standing.best_epoch < schedule.patience:
        for _ in range(rollouts):
            learner.rollout()
        report.check()
        weights = learner.network.weights()
        if not all(np.isfinite(each).all() for each in weights.values()):
            raise TrainingError(
                f"the weights of epoch {standing.epoch + 1} are not numbers; lower `learning_rate` or look for absurd "
                "values among the features"
            )
        earned = walk_over(learner.network, market)
        standing.end_epoch(float(earned.rewards_N.sum()), weights)
        returns = learner.env.take_episode_returns()  # before the checkpoint, which would tell them again
        if saved is not None and saved.checkpoint.due():
            saved.save(learner, standing)
        report(
            standing.epoch,
            schedule.epochs,
            train_episode_return=float(np.mean(returns)) if returns else 0.0,
            stop_net_log_return=float(earned.rewards_N.sum()),
            stop_gross_log_return=float(earned.gross_N.sum()),
            stop_share_in_market=float(np.mean(earned.positions_N != 0)),
        )
    learner.network.load_state_dict({name: torch.from_numpy(value) for name, value in standing.kept.items()})
    return standing


def walk_over(network: PolicyNetwork, market: Market) -> Walk:
    """What the network earns on the part `stop`, in order."""
    return walk(network.act, market.tape, market.stop, lookback=network.stage.lookback)


def _trained(
    network: PolicyNetwork, assignment: Assignment, *, outputs: tuple[str, ...], standing: Standing
) -> Trained:
    weights, is_level_F = network.weights(), assignment.windows.scaler.is_level_F
    lookback = assignment.windows.lookback
    return Trained(
        outputs=outputs,
        weights=weights,
        network={
            "kind": "policy",
            "lookback": lookback,
            "activation": network.stack.activation,
            "gives_probabilities": network.gives_probabilities,
            "num_features": len(is_level_F),
            "num_outputs": len(outputs),
        },
        graph=lambda: layers_graph(
            weights,
            lookback=lookback,
            is_level_F=is_level_F,
            activation=network.stack.activation,
            gives_probabilities=network.gives_probabilities,
        ),
        predict=network.answer,
        epochs_run=standing.epoch,
        best_epoch=standing.best_epoch,
    )
