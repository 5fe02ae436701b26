"""`Control`: reinforcement learning: when to be short, flat or long, judged by what the untouched test part pays.

There is no target: the market pays, net of spread, commission and swap. The test part is walked through once, in order,
by the serving network with its own position fed back; the backtest judges the same positions with the scalar cost
functions, and must agree. Before anything is published the sanity runs are made (`learning/rl_sanity.py`).

Legend: N windows or decisions, K = 3 outputs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError, TrainingError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.learning import evaluation
from ml_workbench_service.learning.family import Assignment, Family, Trained
from ml_workbench_service.learning.judge import Judge
from ml_workbench_service.learning.judges.action import ActionJudge, greedy_actions
from ml_workbench_service.learning.policy_family import PolicyFamily, decision_rows, tape_of
from ml_workbench_service.learning.task import Predict, Product, Task
from ml_workbench_service.market.tape import Tape

MOST_DIFFERENCE = 1e-9
YEAR_MS = 365.25 * 86_400_000
BASELINES = {"flat": 0, "buy_and_hold": 1}
"""Baselines and the position that each holds all the time."""


class Control(Task):
    """Positions of -1, 0 or 1."""

    model_type: ClassVar[ModelType] = ModelType.REINFORCEMENT_LEARNING
    sanity_seeds = 20  # of finance.md

    def check_targets(self, targets: Sequence[Target]) -> None:
        """None at all."""
        if targets:
            raise DataValidationError.at(
                "body.target",
                "reinforcement_learning has no target, it is paid by the market; leave `target` out, or send "
                "model_type time_series to forecast it",
            )

    def package(
        self,
        trained: Trained,
        draft: Path,
        assignment: Assignment,
        *,
        family: Family,
        is_simulated: bool,
        report: Report,
    ) -> Product:
        """As every task; then the sanity runs, whose figures join the test part's."""
        from ml_workbench_service.learning import rl_sanity

        product = super().package(trained, draft, assignment, family=family, is_simulated=is_simulated, report=report)
        assert isinstance(family, PolicyFamily), "families of reinforcement learning are policies"
        sanity = rl_sanity.run(family, assignment, report=report, num_seeds=self.sanity_seeds)
        for warning in sanity.warnings:
            report.warn(warning)
        test = {**product.evaluation.test, **sanity.metrics}
        return replace(
            product,
            evaluation=product.evaluation.model_copy(update={"test": test}),
            findings={**product.findings, "sanity": sanity.to_json()},
            warnings=tuple(sanity.warnings),
        )

    def decisions(self, outputs_NK: Floats, ends: Ints, assignment: Assignment) -> np.ndarray:
        """The greedy actions."""
        return greedy_actions(outputs_NK)

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, assignment: Assignment) -> ActionJudge:
        """An action needs no calibration."""
        return ActionJudge(trained.outputs)

    def evaluate(
        self, trained: Trained, judge: Judge, outputs_NK: Floats, ends: Ints, assignment: Assignment,
        *, is_simulated: bool, predict: Predict,
    ) -> Evaluation:  # fmt: skip
        """One walk over the test part, beside being flat and holding on, on the same rows.

        Raises:
            TrainingError: the walk was paid something else than the backtest says.
        """
        tape = tape_of(assignment)
        rows, positions = _walked(tape, assignment, predict)
        per_year = bars_per_year(tape.known_ms_R[rows])
        test: dict[str, float | None] = _figures(tape, rows, positions, per_year)
        if len(tape.symbols) > 1:
            for number, symbol in enumerate(tape.symbols):
                own = tape.symbol_R[rows] == number
                if own.any():
                    own_year = bars_per_year(tape.known_ms_R[rows[own]])
                    figures = _figures(tape, rows[own], positions[own], own_year)
                    test |= {f"{symbol}_{name}": value for name, value in figures.items()}
        test["num_windows"] = float(len(rows))
        baselines = {
            name: _figures(tape, rows, np.full_like(positions, position), per_year)
            for name, position in BASELINES.items()
        }
        earned = test["net_log_return"] or 0.0
        skill: dict[str, float | None] = {
            f"net_over_{name}": earned - (figures["net_log_return"] or 0.0) for name, figures in baselines.items()
        }
        verdict, reason = evaluation.verdict_of(is_simulated)
        return Evaluation(test=test, baselines=baselines, skill=skill, verdict=verdict, reason=reason)


def bars_per_year(known_ms_N: Ints) -> float:
    """Moments of decision in a year, by their own span."""
    moments = np.unique(known_ms_N)
    if len(moments) < 2:
        return 1.0
    return float((len(moments) - 1) * YEAR_MS / (moments[-1] - moments[0]))


def _walked(tape: Tape, assignment: Assignment, predict: Predict) -> tuple[Ints, Ints]:
    """Rows and positions of the walk over the test part, judged by the backtest."""
    from ml_workbench_service.market.backtest import backtest
    from ml_workbench_service.market.environment import walk

    def policy(windows_NTF: Floats32, positions_N: Floats32) -> Ints:
        return greedy_actions(predict(windows_NTF, positions_N))

    rows = decision_rows(tape, assignment, "test")
    done = walk(policy, tape, rows, lookback=assignment.windows.lookback)
    judged = backtest(tape, done.rows_N, done.positions_N, bars_per_year=1.0)
    difference = float(np.abs(done.rewards_N - judged.net_N).max())
    if not difference <= MOST_DIFFERENCE:
        raise TrainingError(
            f"the walk over the test part was paid {difference:.2g} more or less than the backtest says; nothing was "
            "published; please report this with the request"
        )
    return done.rows_N, done.positions_N


def _figures(tape: Tape, rows: Ints, positions: Ints, per_year: float) -> dict[str, float | None]:
    from ml_workbench_service.market.backtest import backtest

    judged = backtest(tape, rows, positions, bars_per_year=per_year)
    held = positions != 0
    summary = judged.summary
    return {
        "net_log_return": summary.net_log_return,
        "gross_log_return": summary.gross_log_return,
        "mean_cost": summary.mean_cost,
        "turnover": summary.turnover,
        "num_trades": float(summary.num_trades),
        "sharpe": summary.sharpe,
        "max_drawdown": summary.max_drawdown,
        "hit_rate": float(np.mean(judged.gross_N[held] > 0)) if held.any() else None,
        "share_in_market": float(np.mean(held)),
    }
