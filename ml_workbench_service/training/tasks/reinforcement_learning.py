"""Reinforcement learning: when to be short, flat or long, measured by what the untouched test part pays.

There is no target: the market pays, net of spread, commission and swap. The test part is walked through once, in order,
by the serving network with its own position fed back; the backtest pays the same positions with the scalar cost
functions, and must agree. Before anything is published the sanity runs are made (`reinforcement/sanity_checks.py`).

Legend: N windows or decisions, K = 3 outputs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError, TrainingError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.evaluation import forecast_metrics as evaluation
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.evaluation.baselines import LINEAR, left_out, linear_positions
from ml_workbench_service.learning.decoders.action import ActionDecoder, greedy_actions
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.fitting.ensemble import seed_spread
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict, Product
from ml_workbench_service.market.trading_series import TradingSeries
from ml_workbench_service.reinforcement.policy_family import PolicyFamily, decision_rows, series_of
from ml_workbench_service.training.tasks.network_task import NetworkTask

if TYPE_CHECKING:
    from ml_workbench_service.reinforcement.environment import Walk

MOST_DIFFERENCE = 1e-9
YEAR_MS = 365.25 * 86_400_000
BASELINES = {"flat": 0, "buy_and_hold": 1}
"""Baselines that hold one position all the time; `linear` is a policy of its own."""


class Control(NetworkTask):
    """Positions of -1, 0 or 1."""

    model_type: ClassVar[ModelType] = ModelType.REINFORCEMENT_LEARNING
    learns_apart: ClassVar[bool] = False  # a walk with a position in hand has no holes
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
        problem: TrainingProblem,
        *,
        family: AnyFamily,
        is_simulated: bool,
        report: Report,
    ) -> Product:
        """As every task; then the sanity runs, whose figures join the test part's."""
        from ml_workbench_service.reinforcement import sanity_checks as rl_sanity

        product = super().package(trained, draft, problem, family=family, is_simulated=is_simulated, report=report)
        assert isinstance(family, PolicyFamily), "families of reinforcement learning are policies"
        sanity = rl_sanity.run(family, problem, report=report, num_seeds=self.sanity_seeds)
        for warning in sanity.warnings:
            report.warn(warning)
        test = {**product.evaluation.test, **sanity.metrics}
        return replace(
            product,
            evaluation=product.evaluation.model_copy(update={"test": test, "oracle_passed": sanity.oracle_passed}),
            findings={**product.findings, "sanity": sanity.to_json()},
            warnings=tuple(sanity.warnings),
        )

    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """The greedy actions."""
        return greedy_actions(outputs_NK)

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> ActionDecoder:
        """An action needs no calibration."""
        return ActionDecoder(trained.outputs)

    def positions(self, predict: Predict, ends: Ints, problem: TrainingProblem) -> Ints:
        """Those of a walk over these windows, its own position fed back; 0 where no decision can be settled."""
        rows, positions = _walk_over(ends, series_of(problem), problem, predict)
        order = np.argsort(ends)
        found_N = np.zeros(len(ends), dtype=np.int64)
        found_N[order[np.searchsorted(np.asarray(ends)[order], rows)]] = positions
        return found_N

    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """Net log return of the account per moment of a walk over these windows."""
        series = series_of(problem)
        rows, positions = _walk_over(ends, series, problem, Predict(trained, None))
        return float(np.mean(signal_backtest.realise(positions, rows, problem).net_M))

    def measure(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: Predict,
    ) -> tuple[Evaluation, list[Differentials]]:  # fmt: skip
        """One walk over the test part, beside being flat, holding on and a linear policy, on the same rows.

        Raises:
            TrainingError: the walk was paid something else than the backtest says.
        """
        series = series_of(problem)
        rows, positions = _walked(series, problem, predict)
        per_year = bars_per_year(series.available_at_ms_R[rows])
        test: dict[str, float | None] = _figures(series, rows, positions, per_year)
        if len(series.symbols) > 1:
            for number, symbol in enumerate(series.symbols):
                own = series.symbol_R[rows] == number
                if own.any():
                    own_year = bars_per_year(series.available_at_ms_R[rows[own]])
                    figures = _figures(series, rows[own], positions[own], own_year)
                    test |= {f"{symbol}_{name}": value for name, value in figures.items()}
        test["num_windows"] = float(len(rows))
        plain = _plain_positions(series, rows, problem, without=left_out(trained.network))
        baselines = {name: _figures(series, rows, held, per_year) for name, held in plain.items()}
        earned = test["net_log_return"] or 0.0
        skill: dict[str, float | None] = {
            f"net_over_{name}": earned - (figures["net_log_return"] or 0.0) for name, figures in baselines.items()
        }
        verdict, reason = evaluation.verdict_of(is_simulated)
        differentials = _differentials(rows, positions, plain, problem)
        found = Evaluation(
            test=test,
            baselines=baselines,
            skill=skill,
            verdict=verdict,
            reason=reason,
            comparisons=tuple(each.comparison() for each in differentials),
            backtest=signal_backtest.report(positions, rows, problem),
            seeds=seed_spread(
                trained, lambda one: _figures(series, *_walked(series, problem, Predict(one, None)), per_year)
            ),
        )
        return found, differentials

    def differentials(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, predict: Predict,
    ) -> list[Differentials]:  # fmt: skip
        """What the comparisons are made of, to be pooled with those of other segments of time."""
        series = series_of(problem)
        rows, positions = _walked(series, problem, predict)
        plain = _plain_positions(series, rows, problem, without=left_out(trained.network))
        return _differentials(rows, positions, plain, problem)


def _plain_positions(
    series: TradingSeries, rows: Ints, problem: TrainingProblem, *, without: Collection[str]
) -> dict[str, Ints]:
    """What each baseline holds at these rows."""
    held = {name: np.full(len(rows), position, dtype=np.int64) for name, position in BASELINES.items()}
    if LINEAR in without:
        return held
    return {**held, LINEAR: linear_positions(series, rows, windows=problem.windows)}


def _differentials(
    rows: Ints, positions: Ints, plain: Mapping[str, Ints], problem: TrainingProblem
) -> list[Differentials]:
    """Net log returns of the account at each moment beside each baseline's."""
    own = signal_backtest.realise(positions, rows, problem)
    return [
        Differentials.of_returns(
            name, own.net_M, signal_backtest.realise(held, rows, problem).net_M, moments_T=own.settled_ms_M
        )
        for name, held in plain.items()
    ]


def bars_per_year(available_at_ms_N: Ints) -> float:
    """Moments of decision in a year, by their own span."""
    moments = np.unique(available_at_ms_N)
    if len(moments) < 2:
        return 1.0
    return float((len(moments) - 1) * YEAR_MS / (moments[-1] - moments[0]))


def _walked(series: TradingSeries, problem: TrainingProblem, predict: Predict) -> tuple[Ints, Ints]:
    """Rows and positions of the walk over the test part, judged by the backtest."""
    from ml_workbench_service.market.backtest import backtest

    done = _walk(decision_rows(series, problem, "test"), series, problem, predict)
    judged = backtest(series, done.rows_N, done.positions_N, bars_per_year=1.0)
    difference = float(np.abs(done.rewards_N - judged.net_N).max())
    if not difference <= MOST_DIFFERENCE:
        raise TrainingError(
            f"the walk over the test part was paid {difference:.2g} more or less than the backtest says; nothing was "
            "published; please report this with the request"
        )
    return done.rows_N, done.positions_N


def _walk_over(ends: Ints, series: TradingSeries, problem: TrainingProblem, predict: Predict) -> tuple[Ints, Ints]:
    """Rows that are settled before the next border, ascending, and the positions of a walk over them.

    Raises:
        DataValidationError: no decision can be settled.
    """
    borders_ms = problem.windows.borders_ms.values()
    last_ms = int(series.available_at_ms_R[ends].max())
    until_ms = min((border for border in borders_ms if border >= last_ms), default=None)
    rows = series.payable(np.sort(ends), until_ms=until_ms)
    done = _walk(rows, series, problem, predict)
    return done.rows_N, done.positions_N


def _walk(rows: Ints, series: TradingSeries, problem: TrainingProblem, predict: Predict) -> "Walk":
    from ml_workbench_service.reinforcement.environment import greedy_walk  # numba is no API process's

    return greedy_walk(predict, series, rows, lookback=problem.windows.lookback)


def _figures(series: TradingSeries, rows: Ints, positions: Ints, per_year: float) -> dict[str, float | None]:
    from ml_workbench_service.market.backtest import backtest

    judged = backtest(series, rows, positions, bars_per_year=per_year)
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
