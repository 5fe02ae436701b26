"""stable-baselines3 on gym-anytrading's StocksEnv, as its users run it: default settings, one environment, no logs."""

import time
from typing import Any

import torch
from anytrading_stocks import Stocks
from stable_baselines3 import DQN, PPO
from turns import play

ALGORITHMS: dict[str, tuple[Any, int]] = {"PPO": (PPO, 4096), "DQN": (DQN, 6000)}
"""And the steps that are timed: two rollouts of PPO, and for DQN one gradient step in four."""
_models: dict[str, Any] = {}


def turn(algorithm: str, bars: str, window: int, fee: float) -> dict[str, Any]:
    """Goes on with the training; steps a second of processor time, and what the network and a batch are like."""
    kind, num_steps = ALGORITHMS[algorithm]
    if algorithm not in _models:
        torch.set_num_threads(1)  # two were slower
        _models[algorithm] = kind("MlpPolicy", Stocks(bars, window, fee), device="cpu", seed=0)
        _models[algorithm].learn(num_steps)
    model = _models[algorithm]
    before = model._n_updates
    begun = time.process_time()
    model.learn(num_steps)
    seconds = time.process_time() - begun
    network = model.policy if algorithm == "PPO" else model.q_net
    passes = model.n_epochs if algorithm == "PPO" else 1
    updates = (model._n_updates - before) * (model.n_steps / model.batch_size if algorithm == "PPO" else 1)
    return {
        "steps_per_s": num_steps / seconds,
        "num_parameters": sum(each.numel() for each in network.parameters()),
        "batch_size": model.batch_size,
        "updates_per_step": round(updates / num_steps, 2),
        "passes": passes,
    }


play(turn)
