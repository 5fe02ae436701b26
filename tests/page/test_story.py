"""The page in a real browser: a model from its form to its end, a key, a service that dies, no network, no barriers."""

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ml_workbench_service.contracts.contract import iso
from tests.page.conftest import LINEAR, Looking, answers, axe_source, wait_until
from tests.service_process import WEDNESDAY, ServiceProcess, free_port

pytestmark = pytest.mark.more
VIEWS = ("/", "/models", "/models/hourly", "/train", "/jobs", "/experiments", "/new-experiment", "/live",
         "/agents", "/agents/default", "/deployments")  # fmt: skip
GRAVE = ("serious", "critical")


def settled(page: Page) -> None:
    """Until no part of the view is loading any more."""
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator(".state[role=status]")).to_have_count(0)


def go(looking: Looking, url: str) -> Page:
    looking.page.goto(url)
    settled(looking.page)
    return looking.page


def test_a_model_goes_from_the_form_to_its_end(paged: ServiceProcess, page_url: str, looking: Looking) -> None:
    """Train, watch the curve grow, verdict, deploy, live predictions, the agent acts, roll back, undeploy."""
    page = go(looking, f"{page_url}/train")
    page.get_by_label("Name", exact=True).fill("From the page")
    page.get_by_label("From", exact=True).fill("2024-09-01")
    page.get_by_label("To", exact=True).fill("2025-03-01")
    page.get_by_label("epochs", exact=True).fill("60")
    page.get_by_label("patience", exact=True).fill("60")
    page.get_by_label("lstm units", exact=True).fill("4")
    page.get_by_role("button", name="Start the training").click()
    expect(page.get_by_text("from_the_page 1.0.0 is on its way")).to_be_visible()
    page.get_by_role("link", name="Watch it, or cancel it").click()
    _watch_the_curve_grow(page)
    page.get_by_role("link", name="The model that it made").click()
    settled(page)
    expect(page.get_by_role("heading", name="Verdict")).to_be_visible()
    expect(page.get_by_text("the prices are simulated without drift").first).to_be_visible()
    expect(page.get_by_role("heading", name="What would it have earned?")).to_be_visible()
    page.get_by_role("tab", name="Figures").click()
    expect(page.locator("#equity .figure .main-svg").first).to_be_visible()
    page.get_by_role("tab", name="Desk").click()
    expect(page.get_by_role("heading", name="Deepest drawdowns of the account")).to_be_visible()
    _deploy(page)

    paged.clock.set(datetime(2025, 3, 5, 0, 30, tzinfo=UTC))  # what is asked for from now on is newer than this
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_text("confidence").first).to_be_visible()
    _watch_predictions_arrive(paged, go(looking, f"{page_url}/live"))
    _watch_the_agent_act(paged, go(looking, f"{page_url}/agents/default"))

    paged.train({**LINEAR, "name": "From the page", "model_id": "from_the_page"})
    _deploy(go(looking, f"{page_url}/models/from_the_page?version=1.1.0"))
    wait_until(lambda: live_version(paged) == "1.1.0")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    wait_until(lambda: live_version(paged) == "1.0.0")
    expect(page.get_by_role("button", name="Deploy", exact=True)).to_be_visible()  # it has been loaded anew

    page = go(looking, f"{page_url}/deployments")
    page.get_by_role("link", name="from_the_page").first.click()
    page.get_by_role("button", name="Undeploy").click()
    page.get_by_role("dialog").get_by_role("button", name="Undeploy").click()
    wait_until(lambda: live_version(paged) is None)
    expect(page).to_have_url(re.compile("/deployments$"))
    settled(page)
    expect(page.get_by_text("undeployed").first).to_be_visible()
    page = go(looking, f"{page_url}/agents/default")
    positions = page.locator("section.card", has=page.get_by_role("heading", name="Positions"))
    expect(positions.get_by_text("flat")).to_be_visible()  # told by the closing record
    _purge(go(looking, f"{page_url}/models/from_the_page?version=1.1.0"))
    purged = paged.client.get("/api/v1/models/from_the_page/versions").json()["purged"]
    assert [each["version"] for each in purged] == ["1.1.0"]
    paged.clock.set(WEDNESDAY)


def test_features_are_written_as_expressions(paged: ServiceProcess, page_url: str, looking: Looking) -> None:
    """Commas in brackets divide nothing; a mistake is refused at its character; what there is to write is listed."""
    page = go(looking, f"{page_url}/train")
    page.get_by_label("Name", exact=True).fill("Written")
    page.get_by_label("From", exact=True).fill("2024-09-01")
    page.get_by_label("To", exact=True).fill("2025-03-01")
    page.get_by_text("What an expression is written with").click()
    expect(page.get_by_text("zscore(x, bars)")).to_be_visible()
    features = page.get_by_label("Features", exact=True)
    for text in ("zscore(close, 50)", 'ret("GBP/USD", 1)', "zscore(close, 2)"):
        features.fill(text)
        features.press("Enter")
        expect(page.locator(".q-chip").filter(has_text=text)).to_be_visible()
    page.get_by_role("button", name="Start the training").click()
    expect(page.get_by_text("at character 15")).to_be_visible()
    page.locator(".q-chip").filter(has_text="zscore(close, 2)").get_by_role("button").click()
    page.get_by_role("button", name="Start the training").click()
    expect(page.get_by_text("written 1.0.0 is on its way")).to_be_visible()
    jobs = paged.client.get("/api/v1/jobs", params={"kind": "train"}).json()["jobs"]
    asked = next(each["request"]["features"] for each in jobs if each["request"]["name"] == "Written")
    assert asked[-2:] == ["zscore(close, 50)", 'ret("GBP/USD", 1)']


def _watch_the_curve_grow(page: Page) -> None:
    """Points of the figure while the training runs, at least three numbers of them, rising."""
    expect(page.locator(".figure .main-svg").first).to_be_visible()
    made = page.get_by_role("link", name="The model that it made")
    seen: list[int] = []

    def has_ended() -> bool:
        points = page.evaluate("Math.max(...document.querySelector('.figure').data.map((each) => each.x.length))")
        if not seen or points != seen[-1]:
            seen.append(points)
        return made.is_visible()

    wait_until(has_ended)
    assert len(seen) >= 3, f"the curve was only seen with {seen} points"
    assert seen == sorted(seen)


def _deploy(page: Page) -> None:
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Deploy").click()
    expect(page.get_by_role("button", name="Undeploy")).to_be_visible()


def _purge(page: Page) -> None:
    page.get_by_role("button", name="Archive").click()
    page.get_by_role("dialog").get_by_role("button", name="Archive").click()
    page.get_by_role("button", name="Purge").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Purge")).to_be_disabled()
    dialog.get_by_label("Type from_the_page to go on").fill("from_the_page")
    dialog.get_by_role("button", name="Purge").click()
    expect(page).to_have_url(re.compile("/models$"))


def ask(service: ServiceProcess, hours: range) -> None:
    """Live predictions of a Wednesday after the training's end, as somebody else's programme asks for them."""
    for hour in hours:
        moment = datetime(2025, 3, 5, hour, tzinfo=UTC)
        service.clock.set(moment)
        body = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": iso(moment)}
        service.client.post("/api/v1/models/from_the_page/predict", json=body).raise_for_status()


def live_version(service: ServiceProcess) -> str | None:
    listed = service.client.get("/api/v1/deployments", params={"model_id": "from_the_page", "status": "live"}).json()
    return next((each["version"] for each in listed["deployments"]), None)


def _watch_predictions_arrive(service: ServiceProcess, page: Page) -> None:
    """Rows that were not there come without a reload, and what came true of the earlier ones."""
    rows = page.locator("section.card", has=page.get_by_role("heading", name="Predictions")).locator("tbody tr")
    ask(service, range(1, 5))
    expect(rows.filter(has_text="from_the_page 1.0.0").filter(has_text="2025-03-05 04:00:00")).to_have_count(1)
    expect(rows.filter(has_text="2025-03-05 01:00:00").filter(has_text="known")).to_have_count(1)
    ask(service, range(5, 7))
    expect(rows.filter(has_text="2025-03-05 06:00:00")).to_have_count(1)


def _watch_the_agent_act(service: ServiceProcess, page: Page) -> None:
    """Its decisions, position and reward move while the page is open; the reward has a history from the start."""
    decisions = page.locator("section.card", has=page.get_by_role("heading", name="Last decisions")).locator("tbody tr")
    expect(decisions.filter(has_text="2025-03-05 06:00:00")).to_have_count(1)
    reward = page.locator("section.card", has=page.get_by_role("heading", name="Cumulative reward"))
    expect(reward.locator(".figure .main-svg").first).to_be_visible()
    drawn = "(found) => found.data.find((each) => each.name === 'net').x.length"
    before = reward.locator(".figure").evaluate(drawn)
    assert before >= 6
    ask(service, range(7, 12))
    expect(decisions.filter(has_text="2025-03-05 11:00:00")).to_have_count(1)
    wait_until(lambda: reward.locator(".figure").evaluate(drawn) == before + 5)
    positions = page.locator("section.card", has=page.get_by_role("heading", name="Positions"))
    expect(positions.get_by_text("EUR/USD")).to_be_visible()
    assert service.client.get("/api/v1/agents/default").json()["num_settled"] >= 8
    learnt = page.locator("section.card", has=page.get_by_role("heading", name="What it has learnt"))
    expect(learnt.locator(".figure .main-svg").first).to_be_visible()
    expect(learnt.get_by_text("state-action pairs were visited")).to_be_visible()


def test_boosted_trees_say_why_and_what_their_columns_are_worth(
    paged: ServiceProcess, page_url: str, looking: Looking
) -> None:
    newest = max(each["last"] for each in paged.client.get("/api/v1/series").json()["series"])
    end = datetime.fromisoformat(newest)  # of the sample, whose clock decides whether a model is too old
    body = {**LINEAR, "model_id": "trees", "name": "Trees", "family": "lightgbm", "validation_split": 0.4}
    body |= {"start_date": iso(end - timedelta(days=180)), "end_date": iso(end)}
    paged.train({**body, "hyperparameters": {"num_iterations": 40, "lookback": 6}})
    page = go(looking, f"{page_url}/models/trees")
    page.get_by_role("tab", name="Figures").click()
    settled(page)
    expect(page.get_by_text("nobody has measured its columns' importance yet")).to_be_visible()
    begun = paged.client.post("/api/v1/models/trees/versions/1.0.0/importance", json={"num_repeats": 2}).json()
    assert paged.wait_for_job(begun["job_id"])["status"] == "succeeded"
    page = go(looking, f"{page_url}/models/trees")
    page.get_by_role("tab", name="Figures").click()
    page.locator("#column_importance").scroll_into_view_if_needed()
    expect(page.locator("#column_importance .figure .main-svg").first).to_be_visible()
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("heading", name="Why")).to_be_visible()
    expect(page.get_by_text("it explains the model, not the market")).to_be_visible()
    rows = page.locator("section.card", has=page.get_by_role("heading", name="Ask it now")).locator("tbody tr")
    assert {"(base)", "return_1", "rsi_14", "(together)"} <= set(rows.locator("td").all_inner_texts())


def test_a_search_is_started_on_the_page_and_its_trials_are_drawn(
    paged: ServiceProcess, page_url: str, looking: Looking
) -> None:
    page = go(looking, f"{page_url}/experiments")
    page.get_by_role("link", name="Start an experiment").click()
    settled(page)
    page.get_by_label("Name", exact=True).fill("Rates")
    page.get_by_label("Family", exact=True).click()
    page.get_by_role("option", name="linear", exact=True).click()
    page.get_by_label("From", exact=True).fill("2024-09-01")
    page.get_by_label("To", exact=True).fill("2025-03-01")
    page.get_by_label("Number of trials").fill("2")
    page.get_by_role("button", name="Start the experiment").click()
    expect(page.get_by_text("choose at least one hyper-parameter to search")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Search learning rate").click()
    page.get_by_role("option", name="range, logarithmic").click()
    page.get_by_label("learning rate from").fill("0.001")
    page.get_by_label("learning rate to").fill("0.1")
    page.get_by_role("button", name="Start the experiment").click()
    page.get_by_role("link", name="Watch its trials").click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    expect(page.locator(".figure .main-svg").first).to_be_visible()
    (found,) = paged.client.get("/api/v1/experiments").json()["experiments"]
    assert (found["name"], found["num_trials"]) == ("Rates", 2)
    asked = paged.client.get(f"/api/v1/jobs/{found['id']}").json()["request"]
    assert asked["search_space"] == {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
    assert (asked["sampler"], asked["base"]["family"]) == ("tpe", "linear")
    paged.wait_for_job(found["id"])


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
