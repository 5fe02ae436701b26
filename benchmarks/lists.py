"""What lists cost with 500 models and 2,000 jobs, beside 5 and 20: over HTTP, and as a browser shows them.

    python -m benchmarks.lists

Two services over states that differ in how much there is (`many_models`): every tenth job is an experiment, every fifth
model was deployed three times, and each model's evaluation stands in the multiple-testing log. A list is asked for by a
page that both can fill, and as a caller gets it who says nothing: up to 50 rows, of which the small one has 2 to 20;
that is shown beside it, a row's own cost among it. Rounds in turn; a ratio is taken within each round. The services
have been asked once before, since what was never read has to be.

The browser opens each view of the page anew, from the address to the first row on the screen; then it scrolls through
the longest list, and the frames are timed.
"""

import http.client
import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.many_models import make_pattern, multiply
from benchmarks.running_service import RunningService, started
from benchmarks.startup import free_port
from tools.interleaved_rounds import Goal, Rounds, conclude, show

SMALL, LARGE = "5 models, 20 jobs", "500 models, 2,000 jobs"
SIZES = {SMALL: (5, 20), LARGE: (500, 2_000)}
WHOLE = ("models", "jobs", "deployments", "experiments", "jobs?kind=train", "models?status=deployed")
EQUAL = ("models?limit=5", "jobs?limit=20", "deployments?limit=3", "experiments?limit=2")
VIEWS = {
    "/": ".headlines", "/models": "tbody tr td", "/jobs": "tbody tr td", "/experiments": "tbody tr td",
    "/deployments": "tbody tr td",
}  # fmt: skip
GOAL = 3.0
SLOW_FRAME_MS = 50.0
SCROLL = """
async () => {
  const times = []; let last = performance.now(); const end = last + 2000;
  const box = document.scrollingElement;
  while (last < end) {
    await new Promise(requestAnimationFrame);
    const now = performance.now(); times.push(now - last); last = now;
    box.scrollTop = (box.scrollTop + 40) % Math.max(1, box.scrollHeight - box.clientHeight);
  }
  return times.slice(1);
}
"""


class KeptGet:
    """One kept connection."""

    def __init__(self, service: RunningService) -> None:
        parts = urlsplit(service.address)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def milliseconds(self, path: str, num: int) -> float:
        """The median over so many requests."""
        found = []
        for _ in range(num):
            begun = time.perf_counter()
            self._connection.request("GET", f"/api/v1/{path}")
            answer = self._connection.getresponse()
            content = answer.read()
            found.append((time.perf_counter() - begun) * 1000)
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status} {content[:300]!r}")
        return statistics.median(found)


def over_http(services: dict[str, RunningService], *, num_rounds: int, per_turn: int) -> dict[str, Rounds]:
    """Figures by list, milliseconds."""
    figures = {path: Rounds(bigger_is_better=False) for path in (*WHOLE, *EQUAL)}
    for number in range(num_rounds + 1):
        for path, rounds in figures.items():
            for name in list(services)[:: 1 if number % 2 else -1]:
                with closing(KeptGet(services[name])) as connection:
                    taken = connection.milliseconds(path, per_turn if number else 1)
                if number:
                    rounds.add(name, taken)
    return figures


def in_a_browser(pages: dict[str, str], *, num_rounds: int) -> tuple[dict[str, Rounds], list[float]]:
    """Figures by view, milliseconds from the address to the first row; and the frames of scrolling the large list."""
    from playwright.sync_api import sync_playwright

    from tests.figures.browser import chromium

    figures = {view: Rounds(bigger_is_better=False) for view in VIEWS}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
        for number in range(num_rounds + 1):
            for view, rounds in figures.items():
                for name in list(pages)[:: 1 if number % 2 else -1]:
                    begun = time.perf_counter()
                    page.goto(f"{pages[name]}{view}", wait_until="commit")
                    page.wait_for_selector(VIEWS[view], timeout=60_000)
                    if number:
                        rounds.add(name, (time.perf_counter() - begun) * 1000)
        page.goto(f"{pages[LARGE]}/models")
        page.wait_for_selector("tbody tr td", timeout=60_000)
        frames: list[float] = page.evaluate(SCROLL)
        browser.close()
    return figures, frames


def page_of(service: RunningService) -> str:
    """Where the page is, once it is."""
    parts = urlsplit(service.address)
    assert parts.hostname is not None
    for _ in range(600):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        place = answer.getheader("Location")
        connection.close()
        if answer.status == 307 and place:
            return place.rstrip("/")
        time.sleep(0.1)
    raise SystemExit("the page did not come up within a minute")


def main(
    *, num_rounds: int = 9, per_turn: int = 5, num_browser_rounds: int = 5, sizes: dict[str, tuple[int, int]] = SIZES
) -> None:
    """Makes the states, measures, prints both tables."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        pattern = make_pattern(folder / "pattern")
        services = {}
        for name, (num_models, num_jobs) in sizes.items():
            places = multiply(pattern, folder / f"of_{num_models}", num_models=num_models, num_jobs=num_jobs)
            page = {"PAGE": "true", "PAGE_PORT": str(free_port())} if num_browser_rounds else {"PAGE": "false"}
            services[name] = stack.enter_context(
                started(places.folder, AGENT_AUTOSTART="false", **page, **places.variables)
            )
        figures: dict[str, Any] = over_http(services, num_rounds=num_rounds, per_turn=per_turn)
        pages = {name: page_of(each) for name, each in services.items()} if num_browser_rounds else {}
        views, frames = in_a_browser(pages, num_rounds=num_browser_rounds) if pages else ({}, [])
    goals = [*_table("a list over HTTP, ms", figures), *_table("a view of the page, ms to its first row", views)]
    if frames:
        slow = 100 * sum(each > SLOW_FRAME_MS for each in frames) / len(frames)
        print(f"  scrolling the models: {len(frames)} frames, median {statistics.median(frames):.1f} ms")
        goals.append(Goal(f"frames of scrolling longer than {SLOW_FRAME_MS:.0f} ms, %", slow, 5.0, at_most=True))
    conclude("lists", goals, {name: each.figures for name, each in {**figures, **views}.items()})


def _table(title: str, figures: dict[str, Rounds]) -> list[Goal]:
    if not figures:
        return []
    ratios = {name: 1 / each.times_better(LARGE, SMALL) for name, each in figures.items()}
    rows = [
        [name, f"{each.median(SMALL):.1f}", f"{each.median(LARGE):.1f}", f"{ratios[name]:.2f}"]
        for name, each in figures.items()
    ]
    show(title, ["", SMALL, LARGE, "times"], rows)
    return [Goal(f"{name}, times the cost", ratio, GOAL, at_most=True) for name, ratio in ratios.items()]


if __name__ == "__main__":
    main()
