"""Version summary for MLflow: a card's evaluation as metrics at step 0, tags and dataset inputs, to compare and search.

Names are letters, digits and underscores, so that `metrics.sharpe > 0.5` needs no quotes; each means the same in every
run, the test part's figure after costs (docs/mlflow.md lists them). What a card does not have is absent, never zero.
"""

import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ml_workbench_service.contracts.contract import iso, iso_of_ms
from ml_workbench_service.contracts.desk_report import DeskReport
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.experiment_tracker.tracker import TrackedDataset

STEP = 0
CONTEXTS = {"train": "training", "stop": "validation", "calibrate": "calibration", "test": "test"}
"""Parts as cards spell them, and what MLflow's `mlflow.data.context` calls them."""
END = ""
"""Of the last part: the newest bar that the training knew."""
ADDS = {"yes": 1.0, "no": 0.0}

Figures = Mapping[str, float | None]


def figures_of(card: ModelCard) -> dict[str, float]:
    """The card's metrics and what its evaluation says, by MLflow's names."""
    found = card.evaluation
    figures: dict[str, float | None] = {
        **card.metrics,
        **_backtest(found),
        **_significance(found),
        **_interval(found),
        **_validation(found),
        "answered_share": found.answered_share,
        "epochs_run": float(card.epochs_run),
    }
    if found.adds_over_linear is not None:
        figures["adds_over_linear"] = ADDS.get(found.adds_over_linear.answer)
        figures["gain_over_linear"] = found.adds_over_linear.gain
    return {legal_name(name): value for name, value in figures.items() if value is not None}


def desk_figures_of(file: Path, *, without: Collection[str]) -> dict[str, float]:
    """What a desk report adds to the card's figures; nothing of a version that has none.

    Args:
        without: names that mean something already.
    """
    if not file.is_file():
        return {}
    found = DeskReport.model_validate_json(file.read_text(encoding="utf-8"))
    rank_ic = found.ranking.rank_ic if found.ranking is not None else None
    figures = {
        "rank_ic": rank_ic.value if rank_ic else None,
        "rank_ic_error": rank_ic.error if rank_ic else None,
        "fifths_spread": found.quantiles.spread.value if found.quantiles else None,
        "turnover_per_year": found.turnover.per_year if found.turnover else None,
        "mean_holding_bars": found.turnover.mean_holding_bars if found.turnover else None,
        "break_even_spread_multiple": found.capacity.break_even_multiple if found.capacity else None,
        "reliability_error": found.classes.reliability_error if found.classes else None,
    }
    return {name: value for name, value in figures.items() if value is not None and name not in without}


def tags_of(card: ModelCard) -> dict[str, str]:
    """Words about a version: what it is, and how it was judged by the rules of today."""
    found, certificate = card.evaluation, card.certificate
    words = {
        "digest": card.digest,
        "family": card.family,
        "data_source": card.data_source,
        "precision": card.precision,
        "verdict": found.verdict,
        "verdict_reason": found.reason,
        "proof": found.proof or (certificate.proof if certificate is not None else None),
        "certificate": None if certificate is None else certificate.status,
        "economic": found.economic,
        "adds_over_linear": None if found.adds_over_linear is None else found.adds_over_linear.answer,
        "hardest_baseline": None if found.significance is None else found.significance.baseline,
        "symbols": ", ".join(card.symbols),
        "timeframe": card.timeframe,
        "target": card.target,
    }
    return {name: word for name, word in words.items() if word}


def datasets_of(card: ModelCard, recipe: Mapping[str, Any]) -> tuple[TrackedDataset, ...]:
    """The parts of the data as dataset inputs, oldest first.

    One training's parts share a digest, the fingerprint's first half: trainings on the very same data are found by it.
    """
    begins = {part: iso(moment) for part, moment in card.split.borders.items()}
    if asked := (recipe.get("request") or {}).get("start_date"):
        begins["train"] = str(asked)
    if "last_known_ms" in recipe:
        begins[END] = iso_of_ms(int(recipe["last_known_ms"]))
    ends = dict(pairwise([*CONTEXTS, END]))
    parts = [part for part in CONTEXTS if part in card.split.num_windows]
    return tuple(
        TrackedDataset(
            name=f"{', '.join(card.symbols)} {card.timeframe} {CONTEXTS[part]}",
            digest=card.lineage.data_fingerprint.removeprefix("sha256:")[:32],
            context=CONTEXTS[part],
            source={
                "symbols": ", ".join(card.symbols),
                "timeframe": card.timeframe,
                "data_source": card.data_source,
                "part": CONTEXTS[part],
                "from": begins.get(part, ""),
                "until": begins.get(ends[part], ""),
                "data_fingerprint": card.lineage.data_fingerprint,
            },
            columns=(*card.features, *card.target_names),
            num_windows=card.split.num_windows[part],
        )
        for part in parts
    )


def legal_name(name: str) -> str:
    """What MLflow takes as a metric's name and finds without quotes: EUR/USD_sharpe is EUR_USD_sharpe."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _backtest(found: Evaluation) -> Figures:
    backtest = found.backtest
    if backtest is None:
        return {}
    return {
        "net_return": backtest.net_log_return,
        "gross_return": backtest.gross_log_return,
        "sharpe": backtest.sharpe,
        "gross_sharpe": backtest.gross_sharpe,
        "sortino": backtest.sortino,
        "calmar": backtest.calmar,
        "max_drawdown": backtest.max_drawdown,
        "turnover": backtest.turnover,
        "num_trades": float(backtest.num_trades),
        "hit_rate": backtest.hit_rate,
        "share_in_market": backtest.share_in_market,
        "total_cost": backtest.total_cost,
        "break_even_cost_bp": backtest.break_even_cost_bp,
        "probabilistic_sharpe": backtest.probabilistic_sharpe,
        "deflated_sharpe": backtest.deflated_sharpe,
        "economic_p_value": backtest.p_value,
    }


def _significance(found: Evaluation) -> Figures:
    decided = found.significance
    if decided is None:
        return {}
    hardest = next((each for each in found.comparisons if each.baseline == decided.baseline), None)
    return {
        "skill": None if hardest is None else hardest.skill,
        "p_value": decided.p_value,
        "adjusted_p_value": decided.adjusted_p_value,
        "num_hypotheses": float(decided.looks),
        "power": decided.power,
        "effect": decided.effect,
        "excluded_sharpe": decided.excluded_sharpe,
        "num_moments": float(decided.num_moments),
    }


def _interval(found: Evaluation) -> Figures:
    interval = found.interval
    if interval is None:
        return {}
    return {
        "coverage": interval.coverage,
        "coverage_error": interval.coverage - interval.level,
        "interval_width": interval.mean_width,
    }


def _validation(found: Evaluation) -> Figures:
    validation = found.validation
    if validation is None:
        return {}
    return {
        "validation_sharpe": validation.sharpe,
        "validation_deflated_sharpe": validation.deflated_sharpe,
        "backtest_overfitting": validation.probability_of_backtest_overfitting,
        "num_trials": float(validation.num_trials),
    }
