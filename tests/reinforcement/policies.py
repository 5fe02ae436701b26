"""A small market and small policies, for tests of reinforcement learning."""

from dataclasses import replace
from typing import Any

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, TrainingProblem, families_of
from ml_workbench_service.reinforcement.policy_family import Market, PolicyFamily
from ml_workbench_service.reinforcement.sb3_environment import MarketEnvironment
from ml_workbench_service.testing.probes.control import ControlProbe
from ml_workbench_service.testing.synthetic import Recorder, symbol_rows

PROBE = ControlProbe()


def market_of(*tables: Any, num: int = 500, seed: int = 0) -> TrainingProblem:
    """What a policy is asked to learn: a signal that explains 30 % of the next bar, costs of a twentieth of a bar."""
    windows = PROBE.windows(*(tables or [symbol_rows(num=num, r2=0.3)]))
    return replace(PROBE.problem(windows), seed=seed)


def policy_family(name: str, **changes: Any) -> PolicyFamily:
    """The family with few and small steps."""
    kinds: dict[str, type[Family]] = {kind.name: kind for kind in families_of(ModelType.REINFORCEMENT_LEARNING)}
    family = PROBE.family(kinds[name], **changes)
    assert isinstance(family, PolicyFamily)
    return family


def algorithm_of(kind: Any, name: str, problem: TrainingProblem, **changes: Any) -> Any:
    """`VectorPpo` or `VectorDqn` on a market, before its first step."""
    hyper: Any = policy_family(name, **changes).hyperparameters
    environment = MarketEnvironment(
        Market.of(problem),
        lookback=problem.windows.lookback,
        num_envs=hyper.lanes,
        episode_length=hyper.episode_length,
        seed=problem.seed,
    )
    return kind(
        environment, hyper, is_level_F=problem.windows.scaler.is_level_F, total=5000, seed=problem.seed,
        device="cpu", report=Recorder(),
    )  # fmt: skip
