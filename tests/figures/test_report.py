"""The report as text: everything of the card, escaped, in one page that fetches nothing."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from ml_workbench_figures import FigureInputs
from ml_workbench_figures.desk_tables import desk_tables
from ml_workbench_figures.report import PIECE_CHARS, plotly_js, report
from ml_workbench_figures.theme import PALETTES
from ml_workbench_service.contracts.evaluation import (
    CombinatorialReport,
    Fold,
    Spread,
    ValidationGroup,
    ValidationPath,
    WalkForwardReport,
)
from ml_workbench_service.contracts.models import SampleWeights
from ml_workbench_service.evaluation.desk.report import report_of
from tests.evaluation.desk.planted_rows import planted

UNTIL = datetime(2024, 3, 1, tzinfo=UTC)
VOID = {"meta", "link", "br", "input", "img", "hr"}


@pytest.fixture(scope="module")
def page(forecast: FigureInputs) -> str:
    """Its report, without plotly.js."""
    return "".join(report(forecast)).replace(plotly_js().read_text(encoding="utf-8"), "")


class Tags(HTMLParser):
    """Opened and closed tags, and what they carry."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.seen if name == tag]


def test_every_tag_is_closed_and_every_link_leads_somewhere(page: str) -> None:
    tags = Tags(page)
    assert tags.faults == []
    assert tags.open == []
    ids = {attributes["id"] for _, attributes in tags.seen if "id" in attributes}
    links = [str(each["href"]) for each in tags.of("a")]
    assert links[0] == "#main"
    assert {each.removeprefix("#") for each in links} <= ids
    assert len(tags.of("h1")) == len(tags.of("main")) == 1
    assert all(each["role"] == "img" and each["aria-label"] for each in tags.of("div") if each.get("class") == "plot")
    assert all(each.get("tabindex") == "0" for each in tags.of("div") if each.get("class") == "scroll")


def test_it_fetches_nothing(page: str) -> None:
    tags = Tags(page)
    assert [tag for tag, attributes in tags.seen if {"src", "srcset"} & attributes.keys()] == []
    assert tags.of("link") == []
    (policy,) = (str(each["content"]) for each in tags.of("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert re.findall(r"https?://|@import|url\(", page) == []


def test_verdict_costs_certificate_and_lineage_are_there(forecast: FigureInputs, page: str) -> None:
    card = forecast.card
    assert card is not None
    assert card.certificate is not None
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (
        f"Verdict: {card.evaluation.verdict}", "Leakage certificate", card.certificate.checks[0].detail[:30],
        card.lineage.job_id, card.lineage.data_fingerprint, card.digest, "What was charged", *card.symbols,
        *card.evaluation.baselines,
    ):  # fmt: skip
        assert words in text, words
    assert "stop 2" not in text


def test_each_figure_that_applies_is_on_the_page_once(page: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    figures = {name: json.loads(text) for name, text in json.loads(data).items()}
    assert list(figures) == [each["data-figure"] for each in Tags(page).of("div") if "data-figure" in each]
    assert {"equity", "learning_curve", "predictions_and_interval"} <= set(figures)
    assert "confusion" not in figures
    assert "Confusion of classes: it is made of classification" in page
    assert all(each["layout"]["paper_bgcolor"] == PALETTES["light"].paper for each in figures.values())


def test_what_a_card_says_is_never_markup(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    evaluation = forecast.card.evaluation.model_copy(update={"reason": evil, "economic_reason": evil})
    card = forecast.card.model_copy(
        update={"name": evil, "notes": evil, "warnings": (evil,), "evaluation": evaluation, "features": (evil,)}
    )
    page = "".join(report(FigureInputs(card=card, rows=forecast.rows, curves={"epoch": [1], evil: [1.0]})))
    page = page.replace(plotly_js().read_text(encoding="utf-8"), "")
    assert "alert(1)</script>" not in page
    assert "<img" not in page
    assert len(Tags(page).of("script")) == 4


def test_more_splits_stand_beside_the_test_part(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    fold = Fold(
        number=1, test_start=UNTIL, test_end=UNTIL, num_train=811, num_test=90, test={}, skill={"drift": 0.0123}
    )
    walked = WalkForwardReport(folds=(fold,), purged_bars=1, embargo_bars=0, pooled=())
    path = ValidationPath(number=1, skill={"drift": 0.0456}, net_log_return=0.07, sharpe=1.234)
    group = ValidationGroup(number=1, start=UNTIL, end=UNTIL, num_test=90, skill={"drift": -0.0789})
    combined = CombinatorialReport(
        groups=(group,) * 6, test_groups=2, num_trainings=15, num_train=(400, 500), purged_bars=1, embargo_bars=0,
        paths=(path,), skill={"drift": Spread(mean=0.0, std=0.0, minimum=0.0, median=0.0, maximum=0.0)},
    )  # fmt: skip
    evaluation = forecast.card.evaluation.model_copy(update={"walk_forward": walked, "combinatorial": combined})
    split = forecast.card.split.model_copy(
        update={"sample_weights": SampleWeights(mean_uniqueness=0.1, distinct_labels=1234.4, effective_windows=9.0)}
    )
    card = forecast.card.model_copy(update={"evaluation": evaluation, "split": split})
    page = "".join(report(FigureInputs(card=card))).replace(plotly_js().read_text(encoding="utf-8"), "")
    assert Tags(page).faults == []
    for words in (
        "Walk forward, before the test part", "<td>811</td>", "15 trainings, each without 2 of 6", "1.234", "-0.0789",
        "as many as 1,234 labels that share no bar",
    ):  # fmt: skip
        assert words in page, words


def test_a_desks_tables_stand_on_the_page(forecast: FigureInputs) -> None:
    assert forecast.card is not None
    desk = report_of(planted(seed=4))
    page = "".join(report(FigureInputs(card=forecast.card, rows=forecast.rows, desk=desk)))
    page = page.replace(plotly_js().read_text(encoding="utf-8"), "")
    assert Tags(page).faults == []
    for table in desk_tables(desk):
        assert f"<caption>{table.title}</caption>" in page
    assert "No rows of its test part are kept" in "".join(report(FigureInputs(card=forecast.card)))


def test_it_comes_in_pieces_and_begins_in_the_colours_asked_for(forecast: FigureInputs) -> None:
    pieces = list(report(forecast, theme="dark"))
    assert max(map(len, pieces)) <= max(PIECE_CHARS, 2_000_000)
    assert sum(map(len, pieces)) > 4_000_000
    assert 'data-theme="dark"' in pieces[0]
    assert "data-theme=" not in next(report(forecast)).split("<style>")[0]
