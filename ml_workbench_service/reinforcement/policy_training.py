"""Policy training: epochs of trading, a walk over the validation part after each, the best epoch kept.

An epoch is about as many decisions as the training part has rows, in whole rollouts. The walk is greedy and net of all
costs; training ends when `patience` epochs brought no better one. After an epoch everything that decides the rest goes
into the checkpoint, so that a killed training ends with the same weights. One thread: more change nothing for networks
of this size.

A checkpoint holds the algorithm's own `state` (parameters, Adam's moments, environments, replay buffer, counters and
random states), the best weights so far and torch's random state.
"""

from typing import TypeVar

import numpy as np
import torch

from common_lib.exceptions import TrainingError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.reinforcement.environment import walk
from ml_workbench_service.reinforcement.hyperparameters import PolicyNetworkHyperparameters
from ml_workbench_service.reinforcement.policy_algorithm import PolicyAlgorithm, below
from ml_workbench_service.reinforcement.policy_family import Market, Standing
from ml_workbench_service.reinforcement.policy_network import PolicyNetwork, layers_graph
from ml_workbench_service.reinforcement.sb3_environment import MarketEnvironment

H = TypeVar("H", bound=PolicyNetworkHyperparameters)


def _save(checkpoint: Checkpoint, algorithm: PolicyAlgorithm[H], standing: Standing) -> None:
    arrays = {f"learner.{name}": value for name, value in algorithm.state().items()}
    arrays |= {f"kept.{name}": value for name, value in standing.kept.items()}
    arrays["random.torch"] = torch.get_rng_state().numpy()
    if torch.cuda.is_available():
        arrays["random.cuda"] = torch.cuda.get_rng_state().numpy()
    checkpoint.save(arrays, standing.counts())


def _restore(checkpoint: Checkpoint, algorithm: PolicyAlgorithm[H]) -> Standing | None:
    """Goes on where a checkpoint was left; None where there is none."""
    saved = checkpoint.load()
    if saved is None:
        return None
    algorithm.restore(below("learner.", saved.arrays))
    torch.set_rng_state(torch.from_numpy(np.array(saved.arrays["random.torch"])))
    if "random.cuda" in saved.arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(np.array(saved.arrays["random.cuda"])))
    return Standing.restored(below("kept.", saved.arrays), saved.state)


def train(
    kind: type[PolicyAlgorithm[H]],
    problem: TrainingProblem,
    hyperparameters: H,
    *,
    outputs: tuple[str, ...],
    accelerator: Accelerator,
    report: Report,
) -> Trained:
    """Trains a policy; the same seed gives the same weights on the same hardware.

    Args:
        kind: `VectorPpo` or `VectorDqn`.
        outputs: names of the three outputs.

    Raises:
        TrainingError: the network's answers are no numbers any more.
        JobCancelled: somebody asked for it, within one step.
    """
    device = accelerator.for_training()
    if device.type == "cpu":
        torch.set_num_threads(1)
    hyper, windows, market = hyperparameters, problem.windows, Market.of(problem)
    environment = MarketEnvironment(
        market,
        lookback=windows.lookback,
        num_envs=hyper.lanes,
        episode_length=hyper.episode_length,
        seed=problem.seed,
    )
    algorithm = kind(
        environment,
        hyper,
        is_level_F=windows.scaler.is_level_F,
        total=hyper.epochs * len(market.train),
        seed=problem.seed,
        device=device,
        report=report,
    )
    standing = fit(algorithm, market, hyper, report=report, checkpoint=problem.checkpoint)
    algorithm.let_go()
    return _trained(algorithm.network.cpu(), problem, outputs=outputs, standing=standing)


def fit(
    algorithm: PolicyAlgorithm[H], market: Market, hyperparameters: H, *, report: Report, checkpoint: Checkpoint | None
) -> Standing:
    """Fits the algorithm's network in place and leaves it with the best epoch's weights."""
    standing = Standing(kept=algorithm.network.weights())
    restored = None if checkpoint is None else _restore(checkpoint, algorithm)
    if restored is not None:
        standing = restored
        report.say(f"going on after epoch {standing.epoch}")
    rollouts = max(1, round(len(market.train) / algorithm.rollout_size))
    while standing.epoch < hyperparameters.epochs and standing.epoch - standing.best_epoch < hyperparameters.patience:
        for _ in range(rollouts):
            algorithm.rollout()
        report.check()
        weights = algorithm.network.weights()
        if not all(np.isfinite(each).all() for each in weights.values()):
            raise TrainingError(
                f"the weights of epoch {standing.epoch + 1} are not numbers; lower `learning_rate` or look for absurd "
                "values among the features"
            )
        earned = walk(
            algorithm.network.act, market.series, market.validation, lookback=algorithm.network.stage.lookback
        )
        standing.end_epoch(float(earned.rewards_N.sum()), weights)
        returns = algorithm.env.take_episode_returns()  # before the checkpoint, which would tell them again
        if checkpoint is not None and checkpoint.due():
            _save(checkpoint, algorithm, standing)
        report(
            standing.epoch,
            hyperparameters.epochs,
            train_episode_return=float(np.mean(returns)) if returns else 0.0,
            stop_net_log_return=float(earned.rewards_N.sum()),
            stop_gross_log_return=float(earned.gross_N.sum()),
            stop_share_in_market=float(np.mean(earned.positions_N != 0)),
        )
    algorithm.network.load_state_dict({name: torch.from_numpy(value) for name, value in standing.kept.items()})
    return standing


def _trained(
    network: PolicyNetwork, problem: TrainingProblem, *, outputs: tuple[str, ...], standing: Standing
) -> Trained:
    weights, is_level_F = network.weights(), problem.windows.scaler.is_level_F
    lookback = problem.windows.lookback
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
