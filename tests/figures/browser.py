"""A browser that draws figures and reports: what is asked of the picture, rather than of the dictionary."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from ml_workbench_figures.report import plotly_js

WIDTHS = (1400, 400)
TEXTS = """
() => {
  const svgs = [...document.querySelectorAll('.main-svg')];
  const frame = svgs[0].getBoundingClientRect();
  const found = [];
  const seen = (group, selector) => document.querySelectorAll(selector).forEach(each => {
    const box = each.getBoundingClientRect();
    if (box.width < 1 || box.height < 1 || getComputedStyle(each).visibility === 'hidden') return;
    if (each.closest('[style*="opacity: 0"]')) return;
    found.push({group, text: each.textContent, x0: box.left - frame.left, x1: box.right - frame.left,
                y0: box.top - frame.top, y1: box.bottom - frame.top});
  });
  seen('title', '.gtitle'); seen('x title', '.xtitle'); seen('y title', '.ytitle'); seen('y2 title', '.y2title');
  seen('x ticks', '.xtick text'); seen('y ticks', '.ytick text'); seen('y2 ticks', '.y2tick text');
  seen('legend', '.legendtext'); seen('note', '.annotation-text'); seen('colour bar', '.cbaxis text');
  return {width: frame.width, height: frame.height, texts: found};
}
"""


def chromium() -> str:
    """The browser's program; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    return found


@contextmanager
def pages() -> Iterator[Page]:
    """One page of a browser that may not reach any network."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        yield context.new_page()
        browser.close()


def show(page: Page, figure: dict[str, Any], folder: Path, *, width: int) -> None:
    """Draws one figure, and waits until it is there."""
    page.set_viewport_size({"width": width, "height": figure["layout"]["height"]})
    page.goto((folder / "empty.html").as_uri())
    page.evaluate(
        "async figure => { await Plotly.newPlot('place', figure.data, figure.layout, {displayModeBar: false, "
        "responsive: true}); }",
        json.loads(json.dumps(figure)),
    )


def write_frame(folder: Path) -> None:
    """A page with plotly.js and a place for a figure."""
    (folder / "empty.html").write_text(
        f'<!doctype html><meta charset="utf-8"><script src="{plotly_js().as_uri()}"></script>'
        '<body style="margin:0"><div id="place"></div></body>',
        encoding="utf-8",
    )


def faults(page: Page) -> list[str]:
    """Texts that lie outside the picture, or over another one."""
    drawn = page.evaluate(TEXTS)
    texts = drawn["texts"]
    found = [
        f"outside: {each['group']} {each['text'][:30]!r}"
        for each in texts
        if each["x0"] < -1 or each["y0"] < -1 or each["x1"] > drawn["width"] + 1 or each["y1"] > drawn["height"] + 1
    ]
    for number, one in enumerate(texts):
        for other in texts[number + 1 :]:
            if _overlap(one, other):
                pair = [f"{each['group']} {each['text'][:30]!r}" for each in (one, other)]
                found.append(f"one over the other: {' and '.join(pair)}")
    return found


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    across = min(one["x1"], other["x1"]) - max(one["x0"], other["x0"])
    down = min(one["y1"], other["y1"]) - max(one["y0"], other["y0"])
    return across > 1.5 and down > 1.5
