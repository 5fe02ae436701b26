"""Screenshots of every view of a running service's page: light and dark, 1400 and 400 pixels wide.

    make screenshots URL=http://127.0.0.1:8006 TARGET=.bench/screenshots

Needs Chromium (Debian: `apt-get install chromium`). Of details (a model, a job, an experiment, an agent, a deployment)
the newest is taken, as the page's own lists name it. Says which view is wider than the window.
"""

import shutil
import sys
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

VIEWS = ("/", "/models", "/train", "/jobs", "/experiments", "/new-experiment", "/live", "/agents", "/deployments")
DETAILS = ("models", "jobs", "experiments", "agents", "deployments")
TABS = ("Figures", "Desk", "Live", "Proof", "Versions")
WIDTHS = (1400, 400)
LOADED_MS = 120_000
DRAWN_MS = 1500


def main() -> int:
    """Takes them all; 1 where there is no browser or no service."""
    folder = Path(sys.argv[2])
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("no Chromium on the PATH; install it, such as with apt-get install chromium", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    try:
        page = httpx.get(sys.argv[1], follow_redirects=True, timeout=60.0).url  # a service leads to its page
    except httpx.HTTPError as error:
        print(
            f"no page answers at {sys.argv[1]} ({error}); start one with make serve, or name it: URL=", file=sys.stderr
        )
        return 1
    url = str(page).rstrip("/")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            for width in WIDTHS:
                _take(browser, url, folder, theme=theme, width=width)
        browser.close()
    return 0


def _take(browser: Browser, url: str, folder: Path, *, theme: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page = context.new_page()
    for address in (*VIEWS, *_details(page, url)):
        _open(page, f"{url}{address}")
        name = address.strip("/").split("/")
        title = "overview" if not name[0] else name[0] if len(name) == 1 else f"{name[0]}_one"
        _shoot(page, folder / f"{title}_{theme}_{width}.png", width)
        if title == "models_one":
            for tab in TABS:
                page.get_by_role("tab", name=tab).click()
                _wait_until_drawn(page)
                _shoot(page, folder / f"model_{tab.lower()}_{theme}_{width}.png", width)
    context.close()


def _details(page: Page, url: str) -> list[str]:
    """The first that each list leads to."""
    found = []
    for name in DETAILS:
        _open(page, f"{url}/{name}")
        link = page.locator("td a.link").first
        if link.count():
            found.append(str(link.get_attribute("href")))
    return found


def _open(page: Page, address: str) -> None:
    page.goto(address)
    _wait_until_drawn(page)


def _wait_until_drawn(page: Page) -> None:
    """Until nothing is loading any more, and what was drawn has come to rest."""
    page.wait_for_selector("h1", timeout=LOADED_MS)
    page.wait_for_timeout(DRAWN_MS)
    page.wait_for_function("() => !document.querySelector('.state[role=status]')", timeout=LOADED_MS)
    page.wait_for_timeout(DRAWN_MS)


def _shoot(page: Page, file: Path, width: int) -> None:
    page.screenshot(path=file, full_page=True)
    found = int(page.evaluate("document.documentElement.scrollWidth"))
    print(f"{file}{f': {found} pixels wide' if found > width else ''}")


if __name__ == "__main__":
    sys.exit(main())
