"""Every registered figure: drawn, empty, light, dark; a new file in the gallery is under it without a line here."""

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from common_lib.exceptions import DataValidationError, NotFoundError
from ml_workbench_figures import Figure, FigureInputs, draw, figures_for, gallery
from ml_workbench_figures.downsampling import MOST_POINTS
from ml_workbench_figures.figure import figure_named
from ml_workbench_figures.inputs import rows_where
from ml_workbench_figures.theme import PALETTES, darkened
from ml_workbench_service.contracts.models import ModelCard
from tests.figures import tables

OF_A_VERSION = [
    "learning_curve", "equity", "drawdown", "predictions_and_interval", "calibration", "coverage_by_hour", "confusion",
    "monthly_returns", "quantile_returns", "ic_decay", "importance", "column_importance",
]  # fmt: skip
OTHERS = ["trials", "parallel_coordinates", "q_table", "agent_reward", "live_outcomes"]
CLASSES = ("sell", "hold", "buy")
THEMES = list(PALETTES)


@pytest.fixture(scope="module")
def full(forecast: FigureInputs) -> dict[str, FigureInputs]:
    """By name, inputs of which each figure has all that it reads: 6,000 rows where it reads rows."""
    rows = tables.many_rows(6_000)
    card = forecast.card
    assert card is not None
    classes = card.model_copy(update={"type": "classification", "classes": CLASSES, "target": "direction_1h"})
    of_classes = {**rows, "realised": [CLASSES.index(each) - 1 for each in rows["direction"]]}
    usual = FigureInputs(
        card=card, rows=rows, curves=forecast.curves, trials=tables.trials(), importance={"units": 0.7, "lr": 0.3},
        predictions=tables.predictions(), decisions=tables.decisions(), q_table=tables.q_table(),
        measured_importance=tables.measured_importance(),
    )  # fmt: skip
    found = dict.fromkeys(Figure.known, usual)
    return {**found, "confusion": FigureInputs(card=classes, rows=of_classes)}


def test_every_figure_of_the_contract_is_there_and_has_a_file_of_its_own() -> None:
    assert list(Figure.known) == [*OF_A_VERSION, *OTHERS]
    assert [name for name, each in Figure.known.items() if each.subject == "version"] == OF_A_VERSION
    folder = Path(gallery.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(Figure.known)
    for name, figure in Figure.known.items():
        assert type(figure).__module__ == f"ml_workbench_figures.gallery.{name}"


def test_every_figure_is_described_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs" / "figures.md").read_text(encoding="utf-8")
    assert [name for name in Figure.known if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", list(Figure.known))
def test_it_is_drawn_as_plotly_reads_it(name: str, theme: Any, full: dict[str, FigureInputs]) -> None:
    found = draw(name, full[name], theme=theme)
    plain = json.dumps(found, allow_nan=False)
    assert len(go.Figure(json.loads(plain)).data) == len(found["data"]) > 0
    assert "Not drawn" not in plain
    layout = found["layout"]
    assert layout["paper_bgcolor"] == PALETTES[theme].paper
    assert layout["meta"]["name"] == name
    for axis in ("xaxis", "yaxis"):
        is_category = layout[axis].get("type") == "category"
        assert "title" in layout[axis] or is_category or "ticktext" in layout[axis] or name == "parallel_coordinates"


@pytest.mark.parametrize("name", list(Figure.known))
def test_a_page_makes_the_dark_figure_of_the_light_one(name: str, full: dict[str, FigureInputs]) -> None:
    light, dark = (json.dumps(draw(name, full[name], theme=theme)) for theme in ("light", "dark"))
    assert darkened(light) == dark != light


@pytest.mark.parametrize("name", list(Figure.known))
def test_no_more_is_drawn_of_a_line_than_a_screen_shows(name: str, full: dict[str, FigureInputs]) -> None:
    for trace in draw(name, full[name])["data"]:
        assert len(trace.get("x", ())) <= 2 * MOST_POINTS
    assert len(json.dumps(draw(name, full[name]))) < 600_000


def test_a_table_of_which_nothing_was_visited_is_not_drawn() -> None:
    found = draw("q_table", FigureInputs(q_table=tables.q_table(0)))
    assert found["data"] == []
    assert "has visited no state" in found["layout"]["annotations"][0]["text"]


@pytest.mark.parametrize("name", list(Figure.known))
def test_what_is_missing_is_said_in_a_sentence(name: str, forecast: FigureInputs) -> None:
    for given in (FigureInputs(), FigureInputs(card=forecast.card)):
        found = draw(name, given)
        go.Figure(json.loads(json.dumps(found, allow_nan=False)))
        assert found["data"] == []
        (words,) = (each["text"] for each in found["layout"]["annotations"])
        assert words.startswith("Not drawn: ")
        assert words.endswith(".")


@pytest.mark.parametrize("name", OF_A_VERSION)
def test_empty_columns_are_no_error(name: str, forecast: FigureInputs) -> None:
    rows = {column: [None] * 40 for column in forecast.rows} | {
        column: forecast.rows[column][-40:] for column in ("part", "as_of", "symbol")
    }
    given = FigureInputs(card=forecast.card, rows=rows, curves={"epoch": [1], "train_loss": [None]})
    go.Figure(json.loads(json.dumps(draw(name, given), allow_nan=False)))


@pytest.mark.parametrize("name", OF_A_VERSION)
def test_the_caption_carries_the_verdict_and_its_reason(name: str, full: dict[str, FigureInputs]) -> None:
    card = full[name].card
    assert card is not None
    found = draw(name, full[name])["layout"]
    verdict = card.evaluation.verdict.replace("_", " ")
    assert found["meta"]["caption"][0].startswith(f"Verdict {verdict}: {card.evaluation.reason}"[:80])
    shown = re.sub(r"<[^>]+>", " ", found["title"]["text"])
    assert f"Verdict {verdict}:" in shown
    assert f"{card.id} {card.version}" in shown


def test_money_is_told_after_costs_too(full: dict[str, FigureInputs]) -> None:
    card = full["equity"].card
    assert card is not None
    stated = str(card.evaluation.economic).replace("_", " ")
    for name in ("equity", "drawdown", "monthly_returns"):
        assert any(
            each.startswith(f"After costs {stated}") for each in draw(name, full[name])["layout"]["meta"]["caption"]
        )


def test_an_unknown_figure_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean equity"):
        draw("equty", FigureInputs())
    with pytest.raises(NotFoundError, match="known: learning_curve"):
        figure_named("trials", subject="version")
    theme: Any = "sepia"
    with pytest.raises(DataValidationError, match="light or dark"):
        draw("equity", FigureInputs(), theme=theme)


def test_names_from_outside_are_shown_letter_by_letter(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    reason = "a <b>bold</b> & <a href='x'>claim</a>"
    evaluation = forecast.card.evaluation.model_copy(update={"reason": reason})
    card = forecast.card.model_copy(update={"evaluation": evaluation})
    text = draw("equity", FigureInputs(card=card, rows=forecast.rows))["layout"]["title"]["text"]
    assert "<a href" not in text
    assert "&lt;b&gt;bold&lt;/b&gt; &amp;" in text


def test_importing_loads_nothing() -> None:
    code = "import sys, ml_workbench_figures.report; print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    foreign = {"plotly", "numpy", "polars", "pandas", "pyarrow", "pydantic", "torch", "fastapi", "ml_workbench_service"}
    assert foreign & set(done.stdout.split()) == set()


def test_a_version_says_which_figures_suit_it(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    found = {each.name: each for each in figures_for(forecast.card)}
    assert list(found) == OF_A_VERSION
    assert found["equity"].applies
    assert not found["confusion"].applies
    assert "classification" in found["confusion"].why_not
    assert not found["importance"].applies
    bare = {each.name: each.applies for each in figures_for(forecast.card, has=())}
    assert not any(bare.values())
    untraded = forecast.card.evaluation.model_copy(update={"backtest": None})
    card: ModelCard = forecast.card.model_copy(update={"evaluation": untraded})
    assert {each.name for each in figures_for(card) if "nothing is traded" in each.why_not} == {
        "equity", "drawdown", "monthly_returns",
    }  # fmt: skip


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    """The last trace of that name: of a figure of several parts the test part's."""
    return [each for each in figure["data"] if each.get("name") == name][-1]


def test_the_equity_ends_where_the_card_says(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    backtest = forecast.card.evaluation.backtest
    assert backtest is not None
    figure = draw("equity", forecast)
    assert trace(figure, "net")["y"][-1] == pytest.approx(backtest.net_log_return, rel=1e-4, abs=1e-8)
    assert trace(figure, "gross")["y"][-1] == pytest.approx(backtest.gross_log_return, rel=1e-4, abs=1e-8)
    assert min(trace(draw("drawdown", forecast), "net")["y"]) == pytest.approx(-backtest.max_drawdown, abs=1e-4)


def test_the_test_part_is_shaded_where_others_are_shown(forecast: FigureInputs) -> None:
    def is_shaded(given: FigureInputs) -> bool:
        return any(each["type"] == "rect" for each in draw("equity", given)["layout"]["shapes"])

    assert is_shaded(forecast)
    rows = forecast.part("test")
    assert not is_shaded(FigureInputs(card=forecast.card, rows=rows))
    assert not is_shaded(FigureInputs(card=forecast.card, rows={name: rows[name] for name in rows if name != "part"}))


def test_months_add_up_to_the_whole(full: dict[str, FigureInputs]) -> None:
    given = full["monthly_returns"]
    (cells,) = draw("monthly_returns", given)["data"]
    net = sum(value or 0.0 for value in given.part("test")["net"])
    assert sum(row[12][0] for row in cells["customdata"]) == pytest.approx(net)
    months = [cell[0] for row in cells["customdata"] for cell in row[:12] if cell[0] is not None]
    assert math.fsum(months) == pytest.approx(net)


def test_several_symbols_are_one_account(forecast: FigureInputs) -> None:
    rows = tables.many_rows(4_000, symbols=("EUR/USD", "GBP/USD"))
    figure = draw("equity", FigureInputs(card=forecast.card, rows=rows))
    test = FigureInputs(rows=rows).part("test")
    mean = sum(math.expm1(value) for value in test["net"]) / 2
    assert trace(figure, "net")["y"][-1] == pytest.approx(mean, rel=0.05)
    one = rows_where(rows, [each == "EUR/USD" for each in rows["symbol"]])
    alone = draw("equity", FigureInputs(card=forecast.card, rows=one))
    assert trace(alone, "net")["y"][-1] == pytest.approx(sum(FigureInputs(rows=one).part("test")["net"]), rel=1e-4)


def test_a_spike_of_one_row_among_many_is_drawn(forecast: FigureInputs) -> None:
    rows = tables.many_rows()
    figure = draw("predictions_and_interval", FigureInputs(card=forecast.card, rows=rows))
    drawn = trace(figure, "realised")["y"]
    assert len(drawn) <= MOST_POINTS
    assert max(drawn) == pytest.approx(rows["realised"][tables.SPIKE_ROW], rel=1e-4)
    assert any("envelope" in each for each in figure["layout"]["meta"]["caption"])


def test_confusion_counts_every_row_once(full: dict[str, FigureInputs]) -> None:
    given = full["confusion"]
    (cells,) = draw("confusion", given)["data"]
    assert sum(map(sum, cells["customdata"])) == len(given.part("test")["realised"])
    assert any("most frequent" in each for each in draw("confusion", given)["layout"]["meta"]["caption"])


def test_coverage_by_hour_is_the_cards(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    interval = forecast.card.evaluation.interval
    assert interval is not None
    drawn = [each for each in draw("coverage_by_hour", forecast)["data"]]
    found = {hour: share for each in drawn for hour, share in zip(each["x"], each["y"], strict=True)}
    assert found == {each.hour_utc: each.coverage for each in interval.coverage_by_hour}


def test_a_forecast_that_knows_the_next_bar_has_its_whole_information_there(forecast: FigureInputs) -> None:
    rows = {name: values for name, values in tables.many_rows(3_000).items() if not name.startswith("p_")}
    prices = rows["price"]
    rows["prediction"] = [after / before for before, after in zip(prices, [*prices[1:], prices[-1]], strict=True)]
    bars = trace(draw("ic_decay", FigureInputs(card=forecast.card, rows=rows)), "information coefficient")
    assert bars["y"][0] > 0.99
    assert max(map(abs, bars["y"][1:])) < 0.1
    fifths = trace(
        draw("quantile_returns", FigureInputs(card=forecast.card, rows=tables.many_rows(20_000))), "mean outcome"
    )
    assert fifths["y"][-1] > max(fifths["y"][0], 0.0)


def test_a_promise_that_is_kept_lies_on_the_diagonal(full: dict[str, FigureInputs]) -> None:
    given = full["confusion"]
    figure = draw("calibration", given)
    assert {each["name"] for each in figure["data"]} >= {"as promised", "frequencies alone", *CLASSES}
    for name in CLASSES:
        points = trace(figure, name)
        assert sum(points["customdata"]) <= len(given.part("test")["realised"])
        assert all(0 <= share <= 1 for share in points["y"])


def test_a_file_of_the_gallery_defines_one_figure() -> None:
    folder = Path(gallery.__file__).parent
    for path in folder.glob("*.py"):
        classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
        figures = [each for each in classes if any(getattr(base, "id", "") == "Figure" for base in each.bases)]
        assert len(figures) == (path.stem != "__init__"), path


def test_an_agents_reward_is_drawn_decision_by_decision_where_its_records_go_back_in_time() -> None:
    columns = {name: list(values) for name, values in tables.decisions(40).items()}
    forward = draw("agent_reward", FigureInputs(decisions=columns))
    columns["as_of"] = [*columns["as_of"][20:], *columns["as_of"][:20]]
    back = draw("agent_reward", FigureInputs(decisions=columns))
    (moments, numbers) = ({each["name"]: each["x"] for each in found["data"]}["net"] for found in (forward, back))
    assert moments[0].startswith("2020-01-01")
    assert numbers == list(range(1, 41))
    assert "decision by decision" in " ".join(back["layout"]["meta"]["caption"])
    assert "decision by decision" not in " ".join(forward["layout"]["meta"]["caption"])


def test_importance_of_columns_stands_beside_its_errors_noise_and_the_loss_as_it_is() -> None:
    report = tables.measured_importance()
    found = draw("column_importance", FigureInputs(measured_importance=report))
    adds, noise = found["data"]
    assert (adds["y"], len(noise["y"])) == (["zscore(close, 10)", "column_0"], 4)
    assert adds["x"] == [0.006, 0.031]
    assert adds["error_x"]["array"] == [pytest.approx(1.96 * 0.0015)] * 2
    assert noise["error_x"]["array"].count(None) == 1, "what has no error shows none"
    shapes = found["layout"]["shapes"]
    assert [each["type"] for each in shapes] == ["rect"] * 5 + ["line"], "one column has no error"
    assert all(each["x1"] == -each["x0"] == pytest.approx(1.96 * 0.0015) for each in shapes[:5])
    assert shapes[-1]["x0"] == shapes[-1]["x1"] == 0.0
    assert found["layout"]["yaxis"]["categoryarray"][-1] == "column_0", "the greatest at the top"
    nothing = [
        each.model_copy(update={"loss_added": each.loss_added.model_copy(update={"value": 0.0, "error": 0.0})})
        for each in report.columns
    ]
    silent = draw("column_importance", FigureInputs(measured_importance=report.model_copy(update={"columns": nothing})))
    assert silent["layout"]["xaxis"]["range"] == [-0.01, 0.01], "no axis of 100 % around nothing"
    assert any("No column changes the loss" in each for each in silent["layout"]["meta"]["caption"])
    counted = report.model_copy(update={"part": "test", "num_counted": 6})
    notes = draw("column_importance", FigureInputs(measured_importance=counted))["layout"]["meta"]["caption"]
    assert any("counts as 6 hypotheses" in each for each in notes)
