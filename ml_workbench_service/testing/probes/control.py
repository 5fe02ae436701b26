"""Reinforcement learning: the same signal as for forecasts, and costs of a twentieth of a bar's typical move."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.decoders.action import greedy_actions
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Task
from ml_workbench_service.reinforcement.environment import walk
from ml_workbench_service.reinforcement.policy_family import series_of
from ml_workbench_service.reinforcement.sanity_checks import perfect_net
from ml_workbench_service.testing.probes.probe import Probe
from ml_workbench_service.training.tasks.reinforcement_learning import Control

COST_SHARE = 0.05


class ControlProbe(Probe):
    """Share of the perfect policy's net profit; with R² of 30 % the best policy without foresight has about half."""

    model_type: ClassVar[ModelType] = ModelType.REINFORCEMENT_LEARNING
    quick: ClassVar[dict[str, Any]] = {
        "epochs": 12,
        "batch_size": 128,
        "lookback": 8,
        "learning_rate": 0.003,
        "patience": 6,
        "passes": 6,
        "lanes": 64,
        "rollout_steps": 16,
        "layers": 1,
        "memory": 2000,
        "learning_starts": 100,
        "decisions_per_update": 16,
        "target_interval": 200,
        "bins": 4,
        "exploration_decay": 0.999,
    }
    injected: ClassVar[float] = 0.3
    chance: ClassVar[float] = 0.15

    def task(self) -> Task:
        """With 2 sanity seeds; all 20 run in tests/reinforcement/test_sanity_checks.py and in every job."""
        task = Control()
        task.sanity_seeds = 2
        return task

    def problem(self, windows: Windows, *, seed: int = 0, checkpoint: Checkpoint | None = None) -> TrainingProblem:
        """Nothing is forecast; a trade costs a share of the typical move."""
        costs = {}
        for number, symbol in enumerate(windows.symbols):
            rows = windows.parts["train"][windows.symbol_R[windows.parts["train"]] == number]
            typical = float(np.median(np.abs(np.diff(np.log(windows.close_R[rows])))))
            free = Costs(spread_pips=0, commission_bp=0, slippage_bp=0, swap_long_pips=0, swap_short_pips=0)
            costs[symbol] = free.model_copy(update={"commission_bp": 1e4 * COST_SHARE * typical})
        return TrainingProblem(windows=windows, targets=(), seed=seed, costs=costs, checkpoint=checkpoint)

    def quality(
        self, model: Trained, windows: Windows, part: Part = "test", *, length: int | None = None,
        symbols: Sequence[int] | None = None,
    ) -> float:  # fmt: skip
        """Net profit of greedy actions as a share of the perfect policy's."""
        series = series_of(self.problem(windows))
        rows = np.sort(windows.parts[part])
        if symbols is not None:
            rows = rows[np.isin(windows.symbol_R[rows], symbols)]
        done = walk(
            lambda rows_NTF, positions_N: greedy_actions(model.predict(rows_NTF, positions_N).outputs_NK),
            series,
            rows,
            lookback=length or windows.lookback,
        )
        return float(done.rewards_N.sum()) / perfect_net(series, done.rows_N)
