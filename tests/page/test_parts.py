"""What views show, made of a real service's answers: alarms, tables, forms, figures."""

import dataclasses
import shutil
from typing import Any

import pytest
from nicegui import Client, ui
from typer.testing import CliRunner

from common_lib.exceptions import DataValidationError
from ml_workbench_client import AsyncWorkbench
from ml_workbench_client.cli.root import build
from ml_workbench_client.page.alarms import ServiceOverview, look
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.figure import untitled
from ml_workbench_client.page.components.part import _PARTS, _parts_of
from ml_workbench_client.page.components.request_form import primaries_of, seeds_of, target_of
from ml_workbench_client.page.components.schema_form import _read_text, resolved
from ml_workbench_client.page.components.search_space import choices_of
from ml_workbench_client.page.components.table import Cell, rows_of
from ml_workbench_client.page.components.todays_verdict import verdict_of
from ml_workbench_client.page.service_watch import ServiceWatch
from ml_workbench_service.contracts.evaluation import TodaysVerdict
from ml_workbench_service.contracts.jobs import JobError, JobStatus
from ml_workbench_service.contracts.training import parse_target
from tests.conftest import registry_of
from tests.service_process import ServiceProcess, free_port


async def test_nothing_is_wrong_with_a_service_that_works_but_for_a_live_model_without_skill(
    service: ServiceProcess,
) -> None:
    async with AsyncWorkbench(service.url) as bench:
        found = await look(bench)
        assert found.queue is not None
        assert {each["state"] for each in found.ready["things"].values()} >= {"ok"}
        wrong = [each for each in found.alarms if each.kind == "bad"]
        assert not [each for each in wrong if "feature store" in each.sentence]
        assert all(each.where.startswith("/") and not each.where.startswith("//") for each in found.alarms)


async def test_a_classifier_may_follow_the_versions_that_have_a_side(service: ServiceProcess) -> None:
    async with AsyncWorkbench(service.url) as bench:
        models = await bench.models().all()
    small = models[0].model_copy(
        update={"id": "small", "version": "1.0.0", "target": "price_change_1h", "status": "experimental"}
    )
    assert primaries_of([small])["small@1.0.0"].startswith("small 1.0.0 · price_change_1h")
    changes: list[dict[str, Any]] = [{"target": "volatility_1h"}, {"target": "market_regime"}, {"target": None},
                                     {"target": "follow_1h"}, {"status": "archived"}]  # fmt: skip
    assert primaries_of([small.model_copy(update=each) for each in changes]) == {}


async def test_a_version_shows_the_verdict_that_it_has_today(service: ServiceProcess) -> None:
    async with AsyncWorkbench(service.url) as bench:
        found = await bench.model("small", "1.0.0").card
    published = found.model_copy(
        update={"todays_verdict": None, "evaluation": found.evaluation.model_copy(update={"verdict": "skill"})}
    )
    assert verdict_of(published)[::2] == ("skill", None)
    fallen = TodaysVerdict(verdict="no_skill", reason="twenty tries")
    assert verdict_of(published.model_copy(update={"todays_verdict": fallen})) == (
        "no_skill", "twenty tries", "skill"
    )  # fmt: skip
    unread = TodaysVerdict(verdict=None, reason="the log cannot be read")
    assert verdict_of(published.model_copy(update={"todays_verdict": unread})).verdict == "skill"


async def test_a_failed_job_is_an_alarm_that_leads_to_the_job(service: ServiceProcess) -> None:
    async with AsyncWorkbench(service.url) as bench:
        found = await look(bench)
        error = JobError(error_type="TrainingError", error_code="TRAINING_FAILED", message="no bars")
        job = found.jobs[0].model_copy(update={"status": JobStatus.FAILED, "error": error})
        alarm = next(each for each in _with(found, jobs=(job,)).alarms if "no bars" in each.sentence)
        assert alarm.where == f"/jobs/{job.id}"


async def test_a_version_that_is_set_aside_is_an_alarm_and_the_client_and_the_command_line_name_it(
    service: ServiceProcess,
) -> None:
    copied = registry_of(service) / "copied" / "1.0.0"
    shutil.copytree(registry_of(service) / "small" / "1.0.0", copied)
    try:
        async with AsyncWorkbench(service.url) as bench:
            await bench.models().all()  # which looks at every model
            (aside,) = [each for each in await bench.set_aside if each.model_id == "copied"]
            assert await bench.model("copied").set_aside == [aside]
            alarm = next(each for each in (await look(bench)).alarms if each.sentence.startswith("copied 1.0.0"))
        assert (alarm.kind, alarm.where) == ("bad", "/models#set-aside")
        for listing in (["models", "list", "--json"], ["models", "versions", "copied"]):
            listed = CliRunner().invoke(build(), listing, env={"WORKBENCH_URL": service.url})
            assert f"copied 1.0.0 is not served ({aside.state}): {aside.reason}" in listed.stderr
    finally:
        shutil.rmtree(copied.parent)


def _with(found: ServiceOverview, **changed: Any) -> ServiceOverview:
    return dataclasses.replace(found, **changed)


async def test_the_watch_tells_of_a_service_that_is_away_and_of_its_return(service: ServiceProcess) -> None:
    heard: list[bool] = []

    async def listener(is_up: bool) -> None:
        heard.append(is_up)

    away = ServiceWatch(f"http://127.0.0.1:{free_port()}")
    stop = away.listen(listener)
    await away.look()
    await away.look()
    assert heard == [False]  # once, not at every look
    assert "no service answers" in away.reason
    stop()
    await away.close()

    back = ServiceWatch(service.url)
    back.listen(listener)
    back.is_up = False  # as it was found before
    await back.look()
    assert heard == [False, True]
    await back.close()


def test_rows_keep_what_is_sorted_by_and_what_is_shown() -> None:
    rows = rows_of([{"id": "a", "skill": Cell(0.012, "1.2 %", tone="good")}], {"skill": "Skill"}, "id")
    assert rows == [{"_key": "a", "skill": 0.012, "_text_skill": "1.2 %", "_tone_skill": "good"}]


def test_addresses_are_encoded_part_by_part() -> None:
    assert words.path("models", "a/../b", version="1.0.0") == "/models/a%2F..%2Fb?version=1.0.0"
    assert words.cut("one two three", 13) == "one two three"
    assert words.cut("one two three", 12) == "one two …"


async def test_every_hyper_parameter_of_every_family_becomes_a_field_of_its_kind(service: ServiceProcess) -> None:
    async with AsyncWorkbench(service.url) as bench:
        types = await bench.model_types
    seen = 0
    for family in (each for one in types.model_types for each in one.families):
        for name, given in family.hyperparameters.get("properties", {}).items():
            found = resolved(given, family.hyperparameters)
            assert "enum" in found or found.get("type"), (family.name, name)
            seen += 1
    assert seen > 50


def test_a_field_of_json_says_how_it_is_written() -> None:
    assert _read_text("quantiles", "[0.5]", is_text=False) == [0.5]
    assert _read_text("quantiles", "", is_text=False) is None
    with pytest.raises(DataValidationError, match="written as JSON"):
        _read_text("quantiles", "0.5, 0.9", is_text=False)
    with pytest.raises(DataValidationError, match="whole numbers"):
        seeds_of("a, b")
    assert seeds_of("0, 3") == [0, 3]


def test_a_list_to_search_is_read_as_numbers_where_it_has_numbers() -> None:
    assert choices_of("units", "16, 32,64") == [16, 32, 64]
    assert choices_of("rate", "1e-3, 0.5") == [0.001, 0.5]
    assert choices_of("cell", "gru, lstm") == ["gru", "lstm"]
    assert choices_of("cell", ["gru"]) == ["gru"]
    for nothing in ("", " , ", None, []):
        with pytest.raises(DataValidationError, match="at least one value"):
            choices_of("units", nothing)


@pytest.mark.parametrize(
    ("measure", "timeframe", "name"),
    [
        ("price_change", "1h", "price_change_4h"),
        ("log_return", "1d", "log_return_4d"),
        ("direction", "15m", "direction_4"),
        ("volatility_12", "1h", "volatility_12"),
    ],
)
def test_targets_are_those_that_the_service_reads(measure: str, timeframe: str, name: str) -> None:
    assert target_of(measure, 4, timeframe) == name
    assert parse_target(name, timeframe).name == name


def test_a_figure_loses_its_title_and_the_room_that_it_took() -> None:
    figure = {"data": [], "layout": {"title": {"text": "<b>Equity</b><br>more"}, "height": 600, "margin": {"t": 152}}}
    found = untitled(figure)
    assert "title" not in found["layout"]
    assert found["layout"]["height"] == 470
    assert found["layout"]["meta"]["label"] == "Equity"
    assert figure["layout"]["height"] == 600


def test_what_a_closed_page_showed_is_forgotten() -> None:
    page = Client(ui.page("/closed"), request=None)
    assert _parts_of(page) is _parts_of(page)
    assert page in _PARTS
    page.delete()
    assert page not in _PARTS
