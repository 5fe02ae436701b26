"""The page in a real browser: a model from its form to its end, a key, a service that dies, no network, no barriers."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import LINEAR, Looking, answers, axe_source, wait_until
from tests.service_process import ServiceProcess, free_port

pytestmark = pytest.mark.more
VIEWS = ("/", "/models", "/models/hourly", "/train", "/jobs", "/experiments", "/live", "/agents", "/agents/default",
         "/deployments")  # fmt: skip
GRAVE = ("serious", "critical")


def settled(page: Page) -> None:
    """Until no part of the view is loading any more."""
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator(".state[role=status]")).to_have_count(0)


def go(looking: Looking, url: str) -> Page:
    looking.page.goto(url)
    settled(looking.page)
    return looking.page


def test_a_model_is_trained_watched_deployed_asked_and_rolled_back(
    paged: ServiceProcess, page_url: str, looking: Looking
) -> None:
    page = go(looking, f"{page_url}/train")
    page.get_by_label("Name", exact=True).fill("From the page")
    page.get_by_label("From", exact=True).fill("2024-09-01")
    page.get_by_label("To", exact=True).fill("2025-03-01")
    page.get_by_label("epochs", exact=True).fill("4")
    page.get_by_label("lstm units", exact=True).fill("4")
    page.get_by_role("button", name="Start the training").click()
    expect(page.get_by_text("from_the_page 1.0.0 is on its way")).to_be_visible()
    page.get_by_role("link", name="Watch it, or cancel it").click()

    expect(page.locator(".figure .main-svg").first).to_be_visible()  # the curve, once there is a step
    expect(page.get_by_role("link", name="The model that it made")).to_be_visible()
    page.get_by_role("link", name="The model that it made").click()
    settled(page)
    expect(page.get_by_role("heading", name="Verdict")).to_be_visible()
    expect(page.get_by_text("the prices are simulated without drift").first).to_be_visible()
    expect(page.get_by_role("heading", name="What would it have earned?")).to_be_visible()

    page.get_by_role("tab", name="Figures").click()
    expect(page.locator("#equity .figure .main-svg").first).to_be_visible()
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Deploy").click()
    expect(page.get_by_role("button", name="Undeploy")).to_be_visible()

    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_text("confidence").first).to_be_visible()

    page = go(looking, f"{page_url}/deployments")
    expect(page.get_by_role("link", name="from_the_page")).to_be_visible()


def test_another_version_takes_over_and_gives_way_again(paged: ServiceProcess, page_url: str, looking: Looking) -> None:
    paged.train({**LINEAR, "features": ["return_1"]})
    for version in ("1.0.0", "1.1.0"):
        body = {"version": version, "deployment_target": "local", "monitoring_level": "high"}
        assert paged.client.post("/api/v1/models/hourly/deploy", json=body).status_code < 300
    page = go(looking, f"{page_url}/models/hourly")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    wait_until(lambda: paged.client.get("/api/v1/models/hourly").json()["version"] == "1.0.0")


def test_the_three_questions_are_one_click_from_the_start(page_url: str, looking: Looking) -> None:
    page = go(looking, page_url)
    expect(page.get_by_role("heading", name="Is anything wrong?")).to_be_visible()
    for question, anchor in (("Why no skill?", "verdict"), ("What would it have earned?", "earned")):
        page = go(looking, page_url)
        card = page.locator("section.card", has=page.get_by_role("heading", name=question))
        card.get_by_role("link").first.click()
        expect(page).to_have_url(re.compile(f"/models/.*#{anchor}$"))
        expect(page.locator(f"#{anchor}")).to_be_in_viewport()


def test_what_the_service_says_is_text_and_never_run(page_url: str, looking: Looking) -> None:
    page = go(looking, f"{page_url}/models")
    expect(page.get_by_role("link", name=LINEAR["name"])).to_be_visible()
    page = go(looking, f"{page_url}/models/hourly")
    expect(page.get_by_text(LINEAR["name"]).first).to_be_visible()
    assert page.locator("main b").count() == 0


def test_no_view_has_a_barrier_that_axe_calls_serious(page_url: str, looking: Looking) -> None:
    script = axe_source()
    found: list[str] = []
    for scheme in ("light", "dark"):
        looking.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for view in VIEWS:
            page = go(looking, f"{page_url}{view}")
            page.evaluate(script)
            report: dict[str, Any] = page.evaluate("() => axe.run({resultTypes: ['violations']})")
            found += [
                f"{scheme} {view}: {each['id']} ({each['impact']}): {each['nodes'][0]['html'][:160]}"
                for each in report["violations"]
                if each["impact"] in GRAVE
            ]
    assert found == []


def test_a_phone_shows_every_view_without_scrolling_sideways(page_url: str, looking: Looking) -> None:
    looking.page.set_viewport_size({"width": 400, "height": 800})
    wide = []
    for view in VIEWS:
        page = go(looking, f"{page_url}{view}")
        if page.evaluate("document.documentElement.scrollWidth") > 400:
            wide.append(view)
    assert wide == []


def test_the_theme_follows_the_system_and_is_chosen_by_keyboard(page_url: str, looking: Looking) -> None:
    looking.page.emulate_media(color_scheme="dark")
    page = go(looking, page_url)
    expect(page.locator("body.body--dark")).to_have_count(1)
    button = page.get_by_role("button", name="Theme: auto")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("body.body--light")).to_have_count(1)
    page = go(looking, f"{page_url}/models")
    expect(page.locator("body.body--light")).to_have_count(1)  # the choice stays


def test_a_service_that_dies_is_said_and_its_return_is_seen_without_a_reload(
    tmp_path: Path, serve: Callable[..., ServiceProcess], looking: Looking
) -> None:
    service = serve().start()
    port = free_port()  # of a page that the service did not start, so that it outlives it
    environment = {**service._environment, "WORKBENCH_URL": service.url, "PAGE_PORT": str(port)}
    with (tmp_path / "page.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ml_workbench_client.page"], env=environment, stdout=out, stderr=out
        )
    try:
        own = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(own))
        page = go(looking, f"{own}/agents")
        expect(page.get_by_role("link", name="default")).to_be_visible()
        service.kill()
        expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()
        expect(page.get_by_role("link", name="default")).to_be_visible()  # what was there stays
        service.start()
        expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_hidden()
    finally:
        process.terminate()
        process.wait(timeout=30)
