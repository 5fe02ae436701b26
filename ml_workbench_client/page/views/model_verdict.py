"""Verdict and earnings of a version: the reason first, then the figures that it rests on."""

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, card, facts, figure_of, note, text
from ml_workbench_client.page.components.part import nothing
from ml_workbench_client.page.components.table import amount_cell, share_cell, table
from ml_workbench_client.page.components.todays_verdict import verdict_of
from ml_workbench_service.contracts.models import ModelCard

MEANINGS = {
    "skill": "It beat every baseline on bars that it never saw, and nothing shows that it knew the future.",
    "no_skill": "On bars that it never saw it was no better than the baseline. A longer range, other features or "
    "another target may tell more; more of the same tries make the bar higher.",
    "insufficient_data": "There are too few independent moments to tell. Train over a longer range, or on shorter "
    "horizons, of which the same range holds more.",
    "unverified": "It looks better than the baseline, but nothing proves that its columns did not know the future. "
    "Let the service compute the features from bars, or wait until it has seen them arrive.",
    "implausible": "These figures are too good to be true; look for a column that knows the future.",
    "leak": "Something knew the future: the certificate names it. Remove that column and train again.",
    "not_applicable": "Nothing can be said about skill here, as with simulated prices or without a forecast.",
    "not_judged": "It was trained before there were verdicts; train it again to be judged.",
}


def verdict(found: ModelCard) -> None:
    """Whether it has skill, and why or why not."""
    judged, today = found.evaluation, verdict_of(found)
    with card("Verdict", anchor="verdict"):
        with ui.element("div").classes("entry"):
            badge(today.verdict)
            text(today.reason)
        note(MEANINGS.get(today.verdict, ""))
        if today.published is not None:
            note(f"It was published as {words.readable(today.published)}; what was tried since has raised the bar.")
        significance = judged.significance
        if significance is not None:
            facts(
                {
                    "hardest baseline": words.readable(significance.baseline),
                    "p-value": significance.p_value,
                    "p-value after all tries": _today(found, "adjusted_p_value", significance.adjusted_p_value),
                    "passes at": significance.alpha,
                    "tries on this series": _today(found, "looks", significance.looks),
                    "independent moments": significance.num_independent,
                    "power": words.percent(significance.power, 0),
                    "proof": words.readable(judged.proof),
                }
            )
        if judged.adds_over_linear is not None:
            note(f"Better than a linear model: {words.readable(judged.adds_over_linear.answer)}.")
        if judged.comparisons:
            table(
                {"baseline": "Baseline", "skill": "Skill", "model": "Model's loss", "loss": "Its loss", "p": "p-value"},
                [
                    {
                        "baseline": words.readable(each.baseline),
                        "skill": share_cell(each.skill, signed=True),
                        "model": amount_cell(each.model_loss, 4),
                        "loss": amount_cell(each.baseline_loss, 4),
                        "p": amount_cell(each.decisive.p_value),
                    }
                    for each in judged.comparisons
                ],
                label="Beside the baselines",
                numeric=("skill", "model", "loss", "p"),
            )


def _today(found: ModelCard, name: str, published: float | None) -> float | None:
    known: float | None = getattr(found.todays_verdict, name, None)
    return published if known is None else known


def earned(found: ModelCard) -> None:
    """What its signal would have earned on the test part."""
    judged = found.evaluation
    backtest = judged.backtest
    with card("What would it have earned?", aside="test part, log returns of one account", anchor="earned"):
        if backtest is None:
            nothing("Nothing is traded by what it foretells, so that nothing is earned or lost.")
            return
        with ui.element("div").classes("headlines"):
            kind = "good" if backtest.net_log_return > 0 else "bad"
            figure_of(words.percent(backtest.net_log_return, 2, signed=True), "net, after all costs", kind=kind)
            figure_of(words.percent(backtest.gross_log_return, 2, signed=True), "gross")
            figure_of(words.percent(backtest.total_cost, 2), "costs")
            figure_of(words.number(backtest.sharpe, 2), "Sharpe ratio a year, net")
            figure_of(words.percent(backtest.max_drawdown, 2), "deepest drawdown")
        with ui.element("div").classes("entry"):
            badge(judged.economic or "not_applicable")
            if judged.economic_reason:
                text(judged.economic_reason)
        facts(
            {
                "trades": backtest.num_trades,
                "in the market": words.percent(backtest.share_in_market),
                "hit rate": words.percent(backtest.hit_rate),
                "turnover": backtest.turnover,
                "days": backtest.num_days,
                "Sortino": backtest.sortino,
                "Calmar": backtest.calmar,
                "probability of a true Sharpe above 0": words.percent(backtest.probabilistic_sharpe, 0),
                "the same after all tries": words.percent(backtest.deflated_sharpe, 0),
                "p-value": backtest.p_value,
                "break-even cost": f"{words.number(backtest.break_even_cost_bp)} bp",
            }
        )
