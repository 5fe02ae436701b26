"""Evaluation rows: the bundle says row by row what the card sums up."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.evaluation.desk.report import desk_report
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from tests.trained_models import injected_bars, open_bench, train_model

COLUMNS = [
    "part", "as_of", "symbol", "price", "realised", "prediction", "lower", "upper", "confidence", "direction", "status",
    "position", "gross", "cost", "net", "equity",
]  # fmt: skip
REQUEST = {
    "features": ["signal"], "target": "price_change_1h", "symbols": ["EUR/USD"], "validation_split": 0.4,
    "family": "linear", "hyperparameters": {"lookback": 3, "epochs": 2},
}  # fmt: skip
EXACT = 1e-12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelCard, pl.DataFrame, Path]:
    """A card, its rows, and its bundle."""
    folder = tmp_path_factory.mktemp("rows")
    bench = open_bench(folder)
    injected_bars(900, seed=5).write(folder / "bars", "EUR/USD")
    card = train_model(bench, "rows", checkpoint=folder / "checkpoint", **REQUEST)
    bundle = bench.registry.folder(card.id, card.version)
    return card, pl.read_parquet(bundle / EVALUATION_FILE), bundle


def assert_desk_report_is_the_cards(card: ModelCard, path: Path) -> None:
    """Turnover, trades, return, Sharpe ratio and drawdown of the kept rows are the backtest's own."""
    backtest, found = card.evaluation.backtest, desk_report(card, path)
    assert backtest is not None
    assert found.turnover is not None
    assert (found.turnover.total, found.turnover.num_trades) == (
        pytest.approx(backtest.turnover), backtest.num_trades,
    )  # fmt: skip
    assert found.capacity is not None
    as_charged = next(each for each in found.capacity.points if each.spread_multiple == 1)
    assert as_charged.net_log_return == pytest.approx(backtest.net_log_return, abs=EXACT)
    assert as_charged.sharpe == pytest.approx(backtest.sharpe)
    deepest = max((each.depth for each in found.drawdowns), default=0.0)
    assert deepest == pytest.approx(backtest.max_drawdown, abs=EXACT)
    assert sum(each.net for each in found.months) == pytest.approx(backtest.net_log_return, abs=EXACT)


def test_every_row_of_the_judged_parts_is_there_in_order(made: tuple[ModelCard, pl.DataFrame, Path]) -> None:
    card, rows, bundle = made
    assert sorted(rows.columns) == sorted(COLUMNS)
    assert rows["part"].unique(maintain_order=True).to_list() == ["validation", "calibration", "test"]
    counts = dict(rows["part"].value_counts().iter_rows())
    spelt = {"validation": "stop", "calibration": "calibrate", "test": "test"}
    judged = dict(rows.drop_nulls("realised")["part"].value_counts().iter_rows())
    assert judged == {part: card.split.num_windows[name] for part, name in spelt.items()}
    assert all(counts[part] > judged[part] for part in counts), "a signal also holds over the weekend"
    assert rows.filter(pl.col("part") == "test")["as_of"].is_sorted()
    assert rows["as_of"].dtype == pl.Datetime("ms", "UTC")
    assert EVALUATION_FILE in json.loads((bundle / "manifest.json").read_text())["files"]


def test_the_rows_add_up_to_the_card(made: tuple[ModelCard, pl.DataFrame, Path]) -> None:
    card, rows, bundle = made
    assert_desk_report_is_the_cards(card, bundle / EVALUATION_FILE)
    evaluation = card.evaluation
    test = rows.filter(pl.col("part") == "test")
    judged = test.drop_nulls("realised")
    answered = judged.filter(pl.col("status") == "ok")
    assert len(answered) == evaluation.num_answered
    assert len(answered) / len(judged) == evaluation.answered_share
    assert judged.filter(pl.col("status") == "abstain")["prediction"].null_count() == len(judged) - len(answered)
    squares = (answered["realised"] - answered["prediction"]) ** 2
    assert squares.mean() == pytest.approx(evaluation.test["mse"])
    inside = answered["realised"].is_between(answered["lower"], answered["upper"])
    assert evaluation.interval is not None
    assert inside.mean() == pytest.approx(evaluation.interval.coverage)
    assert evaluation.backtest is not None
    assert test["net"].sum() == pytest.approx(evaluation.backtest.net_log_return, abs=EXACT)
    assert test["gross"].sum() == pytest.approx(evaluation.backtest.gross_log_return, abs=EXACT)
    np.testing.assert_allclose((test["gross"] - test["cost"] - test["net"]).drop_nulls(), 0.0, atol=1e-15)
    np.testing.assert_allclose(test["equity"].drop_nulls(), test["net"].drop_nulls().cum_sum(), atol=EXACT)
    sides = test.select(pl.col("direction").replace_strict({"sell": -1, "hold": 0, "buy": 1})).to_series()
    assert sides.to_list() == test["position"].to_list()
    assert test["confidence"].drop_nulls().is_between(0, 1).all()


def test_the_equity_of_several_symbols_is_the_accounts_on_the_card(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    injected_bars(900, seed=6).write(tmp_path / "bars", "EUR/USD")
    injected_bars(900, seed=7, level=1.3).write(tmp_path / "bars", "GBP/USD")
    request = {**REQUEST, "symbols": ["EUR/USD", "GBP/USD"]}
    card = train_model(bench, "pair", checkpoint=tmp_path / "checkpoint", **request)
    rows = pl.read_parquet(bench.registry.folder("pair", "1.0.0") / EVALUATION_FILE)
    test = rows.filter(pl.col("part") == "test")
    assert card.evaluation.backtest is not None
    assert test["equity"].drop_nulls()[-1] == pytest.approx(card.evaluation.backtest.net_log_return, abs=EXACT)
    account = test.drop_nulls("net").group_by("as_of").agg(gain=(pl.col("net").exp() - 1).sum() / 2).sort("as_of")
    running = account["gain"].log1p().cum_sum()
    np.testing.assert_allclose(test.drop_nulls("net").unique("as_of").sort("as_of")["equity"], running, atol=EXACT)
    assert_desk_report_is_the_cards(card, bench.registry.folder("pair", "1.0.0") / EVALUATION_FILE)


def test_a_policys_rows_pay_what_its_card_says(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    injected_bars(900, seed=8, r2=0.3).write(tmp_path / "bars", "EUR/USD")
    request = {
        **REQUEST, "model_type": "reinforcement_learning", "family": "q_learning", "target": None,
        "hyperparameters": {"epochs": 2, "bins": 3},
    }  # fmt: skip
    card = train_model(bench, "policy", checkpoint=tmp_path / "checkpoint", **request)
    rows = pl.read_parquet(bench.registry.folder("policy", "1.0.0") / EVALUATION_FILE)
    test = rows.filter(pl.col("part") == "test")
    assert test["equity"].drop_nulls()[-1] == pytest.approx(card.evaluation.test["net_log_return"], abs=EXACT)
    assert card.evaluation.backtest is not None
    assert test["equity"].drop_nulls()[-1] == pytest.approx(card.evaluation.backtest.net_log_return, abs=EXACT)
    assert test["action"].to_list() == test["position"].to_list()
    assert_desk_report_is_the_cards(card, bench.registry.folder("policy", "1.0.0") / EVALUATION_FILE)
