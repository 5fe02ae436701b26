"""Position rules in training: chosen on the calibration part, one of them measured on the test part.

Every rule that the request names is paid on the calibration part's rows that serving answers, as the test part's will
be. The best daily Sharpe ratio is chosen, the first among equals; a rule that never trades counts as 0, so that being
flat beats losing. Each is a trial. Kelly's slope is fitted on the same rows, where they have a label, and a portfolio's
weights on what the rule's positions earned there.

Legend: N rows, K outputs.
"""

from dataclasses import replace

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import PositionFigures, PositionReport, PositionTrial
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.evaluation.signal_backtest import Account
from ml_workbench_service.learning.decoders.forecast import ForecastDecoder, headline_column
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.interfaces.task import SizingChoice
from ml_workbench_service.market import performance
from ml_workbench_service.market.class_labels import break_even
from ml_workbench_service.market.sizing import Sizing, calibration_slope, equal_risk_weights
from ml_workbench_service.market.targets import target_volatility
from ml_workbench_service.market.trading_series import Positions


def dead_zones(ends: Ints, problem: TrainingProblem) -> Floats:
    """(N,) the round-trip cost at each row, as a fraction of the price."""
    windows = problem.windows
    dead_zones_N = np.empty(len(ends))
    for number, symbol in enumerate(windows.symbols):
        here = windows.symbol_R[ends] == number
        rows = ends[here]
        dead_zones_N[here] = break_even(problem.costs[symbol], symbol, windows.close_R[rows], windows.spread_R[rows])
    return dead_zones_N


def headline(outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Floats:
    """(N,) the first target's forecasts, in its own unit."""
    return np.asarray(outputs_NK[:, headline_column(problem.quantiles)] * problem.windows.label_scale_RK[ends, 0])


def positions(
    decoder: ForecastDecoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem, *, is_free: bool = False
) -> Floats:
    """(N,) the positions that the decoder's rule takes at these rows, as the live agent would.

    Args:
        is_free: as if trading cost nothing.
    """
    windows = problem.windows
    costs_N = np.zeros(len(ends)) if is_free else dead_zones(ends, problem)
    wanted_N = decoder.wanted(
        headline(outputs_NK, ends, problem),
        label_scale_N=windows.label_scale_RK[ends, 0],
        volatility_N=target_volatility(windows.bar_volatility_R[ends], problem.targets[0]),
        dead_zone_N=costs_N,
        weight_N=np.array([decoder.sizing.weight(symbol) for symbol in windows.symbols])[windows.symbol_R[ends]],
    )
    return signal_backtest.taken(decoder.sizing, wanted_N, ends, problem)


def choose(
    decoder: ForecastDecoder, outputs_NK: Floats, ends: Ints, is_judged_N: Bools, problem: TrainingProblem
) -> tuple[ForecastDecoder, SizingChoice | None]:
    """The decoder with the rule that earned most for its risk on these rows, and what all of them came to.

    Args:
        outputs_NK: the serving network's, on the calibration part's rows that serving answers.
        ends: those rows.
        is_judged_N: which of them have a label of the part.
    """
    rules = problem.position_rules
    if not rules or not problem.targets[0].is_traded(problem.fill):
        return decoder, None
    slope = _slope(outputs_NK[is_judged_N], ends[is_judged_N], problem)
    sized = [
        _within_budget(replace(decoder, sizing=_sizing(rule, slope, problem)), outputs_NK, ends, problem)
        for rule in rules
    ]
    accounts = [_account(positions(each, outputs_NK, ends, problem), ends, problem) for each in sized]
    daily = [_daily(account) for account in accounts]
    ratios = [performance.sharpe(np.array(list(each.values()))) for each in daily]
    chosen = int(np.argmax([ratio or 0.0 for ratio in ratios]))
    tried = [
        PositionTrial(
            rule=rule,
            net_log_return=None if account is None else float(account.net_M.sum()),
            sharpe=performance.annual(ratio),
            turnover=None if account is None else float(account.turnover_M.sum()),
        )
        for rule, account, ratio in zip(rules, accounts, ratios, strict=True)
    ]
    return sized[chosen], SizingChoice(tuple(tried), tuple(daily), chosen)


def position_report(
    decoder: ForecastDecoder, own_N: Positions, outputs_NK: Floats, ends: Ints, problem: TrainingProblem
) -> PositionReport:
    """The rule's positions beside its cost-free twin's and those that need no forecast, on the same rows.

    Raises:
        DataValidationError: no decision can be paid.
    """
    twin_N, sizing = positions(decoder, outputs_NK, ends, problem, is_free=True), decoder.sizing
    return PositionReport(
        rule=sizing.rule,
        slope=sizing.slope if sizing.rule.rule == "kelly" else None,
        weights=dict(sizing.weights),
        own=_figures(own_N, ends, problem),
        cost_free=_figures(twin_N, ends, problem, is_free=True),
        buy_and_hold=_figures(np.ones(len(ends)), ends, problem),
        flat=_figures(np.zeros(len(ends)), ends, problem),
    )


def _sizing(rule: PositionRule, slope: float, problem: TrainingProblem) -> Sizing:
    return Sizing.of(
        rule,
        horizon=problem.targets[0].horizon,
        timeframe=problem.tables[0].timeframe,
        slope=slope if rule.rule == "kelly" else 1.0,
    )


def _within_budget(
    decoder: ForecastDecoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem
) -> ForecastDecoder:
    """The decoder with the weights of a portfolio, where its rule has a risk budget."""
    budget = decoder.sizing.rule.risk_budget
    account = None if budget is None else _account(positions(decoder, outputs_NK, ends, problem), ends, problem)
    if budget is None or account is None:
        return decoder
    weights_S = equal_risk_weights(risk_covariance(account), budget)
    weights = dict(zip(problem.windows.symbols, weights_S.tolist(), strict=True))
    return replace(decoder, sizing=replace(decoder.sizing, weights=weights))


def risk_covariance(account: Account) -> Floats:
    """(S, S) of the symbols' shares in the account's gross return of a day, a year's; about zero."""
    symbols_N, num_symbols = account.series.symbol_R[account.rows_N], len(account.series.symbols)
    days, place_M = np.unique(performance.fx_dates(account.settled_ms_M), return_inverse=True)
    share_DS = np.zeros((len(days), num_symbols))
    np.add.at(share_DS, (place_M[account.moments_N], symbols_N), np.expm1(account.gross_N) / account.num_symbols)
    return np.asarray(share_DS.T @ share_DS / len(days) * performance.DAYS_PER_YEAR)


def _slope(outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> float:
    return calibration_slope(headline(outputs_NK, ends, problem), problem.windows.own_labels_RK[ends, 0])


def _account(positions_N: Positions, ends: Ints, problem: TrainingProblem) -> Account | None:
    try:
        return signal_backtest.realise(positions_N, ends, problem)
    except DataValidationError:  # the part is too short for a decision to be paid inside it
        return None


def _daily(account: Account | None) -> dict[str, float]:
    return {} if account is None else performance.daily_returns(account.net_M, account.settled_ms_M)


def _figures(positions_N: Positions, ends: Ints, problem: TrainingProblem, *, is_free: bool = False) -> PositionFigures:
    account = signal_backtest.realise(positions_N, ends, problem)
    return_M = account.gross_M if is_free else account.net_M
    daily_D = np.array(list(performance.daily_returns(return_M, account.settled_ms_M).values()))
    return PositionFigures(
        net_log_return=float(return_M.sum()),
        sharpe=performance.annual(performance.sharpe(daily_D)),
        max_drawdown=performance.max_drawdown(return_M) + 0.0,  # no zero has a sign
        turnover=float(account.turnover_M.sum()),
        mean_size=float(np.abs(account.positions_N).mean()),
    )
