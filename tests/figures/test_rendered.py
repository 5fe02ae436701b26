"""Figures and reports in a browser: every text inside the picture and readable, wide and narrow, light and dark.

FIGURES_GALLERY names a folder for the pictures of docs/figures.md; `make figures` sets it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from ml_workbench_figures import Figure, FigureInputs, draw
from ml_workbench_figures.report import report
from tests.figures import tables
from tests.figures.browser import WIDTHS, faults, pages, show, write_frame
from tests.figures.trained import TrainedVersions, train_all

pytestmark = pytest.mark.more
IN_THE_DOCUMENTS = ("equity", "predictions_and_interval")
MOST_BYTES_OF_A_PICTURE = 100 * 1024


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedVersions:
    """A forecast, a classifier, a policy and a feature set."""
    return train_all(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A browser's page without any network."""
    with pages() as opened:
        yield opened


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page with plotly.js."""
    folder = tmp_path_factory.mktemp("frame")
    write_frame(folder)
    return folder


@pytest.fixture(scope="module")
def many(trained: TrainedVersions) -> FigureInputs:
    """100,000 rows under a real card, and everything that other figures read."""
    usual = trained.inputs["forecast"]
    return FigureInputs(
        card=usual.card, rows=tables.many_rows(), curves=usual.curves, trials=tables.trials(),
        importance={"units": 1.0}, predictions=tables.predictions(), decisions=tables.decisions(),
        q_table=tables.q_table(), measured_importance=tables.measured_importance(30),
    )  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", list(Figure.known))
def test_texts_lie_inside_and_apart(
    name: str, width: int, trained: TrainedVersions, many: FigureInputs, page: Page, frame: Path
) -> None:
    given = [*trained.inputs.values(), many, FigureInputs()]
    for number, each in enumerate(given):
        show(page, draw(name, each, theme="dark" if number % 2 else "light"), frame, width=width)
        assert faults(page) == [], (name, width, number)


def test_a_text_over_another_would_be_found(trained: TrainedVersions, page: Page, frame: Path) -> None:
    figure = draw("equity", trained.inputs["forecast"])
    figure["layout"]["margin"]["t"] = 20
    figure["layout"]["annotations"].append(
        {"text": "far out", "x": 1.2, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    )
    show(page, figure, frame, width=400)
    found = faults(page)
    assert any(each.startswith("one over the other") for each in found)
    assert any(each.startswith("outside") for each in found)


@pytest.mark.parametrize("kind", ["forecast", "classes", "policy", "columns"])
def test_a_report_opens_without_network_and_turns_dark_by_key(
    kind: str, trained: TrainedVersions, page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text("".join(report(trained.inputs[kind])), encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme="light")
    page.goto(path.as_uri())
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(each => each.querySelector('.main-svg'))")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(f"document.querySelector('.plot .main-svg').getBoundingClientRect().width <= {width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = "getComputedStyle(document.body).backgroundColor"
    paper = "document.querySelector('.plot .main-svg').style.background"
    light, light_paper = page.evaluate(background), page.evaluate(paper)
    page.keyboard.press("Tab")  # the link past the header
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "toggle"
    page.keyboard.press("Enter")
    assert page.evaluate(background) != light
    assert page.evaluate(paper) != light_paper
    assert page.get_attribute("#toggle", "aria-pressed") == "true"
    page.keyboard.press("Enter")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == light  # what was chosen holds against the reader's setting
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_documents_pictures_are_drawn(trained: TrainedVersions, page: Page, frame: Path, tmp_path: Path) -> None:
    target = Path(os.environ.get("FIGURES_GALLERY", tmp_path))
    for name in IN_THE_DOCUMENTS:
        show(page, draw(name, trained.inputs["forecast"]), frame, width=560)
        page.screenshot(path=str(target / f"{name}.png"))
        assert 5_000 < (target / f"{name}.png").stat().st_size <= MOST_BYTES_OF_A_PICTURE
