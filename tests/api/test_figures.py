"""`…/figures` and `…/report`: drawn beside the service, passed on in pieces."""

import httpx
import plotly.graph_objects as go
import pytest

from ml_workbench_figures import Figure
from tests.api.conftest import Clone
from tests.api.failures import assert_body
from tests.service_process import ServiceProcess

PLACE = "/api/v1/models/small/versions/1.0.0"


def test_the_list_says_which_figures_apply_and_why_others_do_not(api: httpx.Client) -> None:
    found = api.get(f"{PLACE}/figures").json()
    assert (found["model_id"], found["version"]) == ("small", "1.0.0")
    figures = {each["name"]: each for each in found["figures"]}
    assert list(figures) == [name for name, each in Figure.known.items() if each.subject == "version"]
    assert figures["equity"]["applies"]
    assert figures["learning_curve"]["applies"]
    assert not figures["confusion"]["applies"]
    assert not figures["importance"]["applies"]
    assert all(each["applies"] != bool(each["why_not"]) for each in figures.values())
    assert found["report_href"] == f"{PLACE}/report"


def test_every_figure_is_drawn_and_says_so_where_it_does_not_apply(api: httpx.Client) -> None:
    for each in api.get(f"{PLACE}/figures").json()["figures"]:
        answer = api.get(each["href"])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        go.Figure(answer.json())
        assert bool(answer.json()["data"]) == each["applies"], each["name"]


def test_a_figure_has_the_colours_asked_for(api: httpx.Client) -> None:
    papers = [
        api.get(f"{PLACE}/figures/equity", params={"theme": theme}).json()["layout"]["paper_bgcolor"]
        for theme in ("light", "dark")
    ]
    assert papers == ["#ffffff", "#14181f"]


def test_the_report_is_one_page_with_every_figure(api: httpx.Client) -> None:
    with api.stream("GET", f"{PLACE}/report") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        page = "".join(answer.iter_text())
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    for each in api.get(f"{PLACE}/figures").json()["figures"]:
        assert (f'data-figure="{each["name"]}"' in page) == each["applies"]


@pytest.mark.parametrize(
    ("path", "status", "code", "words"),
    [
        ("small/versions/1.0.0/figures/equty", 404, "NOT_FOUND", "did you mean equity"),
        ("small/versions/1.0.0/figures/trials", 404, "NOT_FOUND", "known: learning_curve"),
        ("small/versions/9.9.9/figures", 404, "VERSION_NOT_FOUND", "no such version"),
        ("small/versions/9.9.9/figures/equity", 404, "VERSION_NOT_FOUND", "no such version"),
        ("nobody/versions/1.0.0/report", 404, "MODEL_NOT_FOUND", "no model of this id"),
        ("small/versions/1.0.0/report?theme=sepia", 422, "DATA_VALIDATION_ERROR", "theme"),
        ("small/versions/1.0.0/figures/equity?them=dark", 422, "DATA_VALIDATION_ERROR", "did you mean theme"),
    ],
)
def test_what_there_is_not_is_refused_with_the_next_step(
    path: str, status: int, code: str, words: str, api: httpx.Client
) -> None:
    answer = api.get(f"/api/v1/models/{path}")
    assert answer.status_code == status
    assert_body(answer.json(), code)
    assert words in answer.text


@pytest.mark.more
def test_what_an_importance_job_found_is_drawn_and_changes_the_reports_tag(
    api: httpx.Client, service: ServiceProcess, clone: Clone
) -> None:
    place = f"/api/v1/models/{clone('drawn')}/versions/1.0.0"
    before = {each["name"]: each for each in api.get(f"{place}/figures").json()["figures"]}["column_importance"]
    assert (before["applies"], "wb.importance" in before["why_not"]) == (False, True)
    tag = api.get(f"{place}/report").headers["ETag"]
    begun = api.post(f"{place}/importance", json={"num_repeats": 1, "part": "test"})
    assert begun.status_code == 202, begun.text
    job = service.wait_for_job(begun.json()["job_id"])
    assert job["status"] == "succeeded", job
    after = {each["name"]: each for each in api.get(f"{place}/figures").json()["figures"]}["column_importance"]
    assert (after["applies"], after["why_not"]) == (True, "")
    figure = api.get(after["href"]).json()
    drawn = [name for trace in figure["data"] for name in trace["y"]]
    assert sorted(drawn) == sorted(each["name"] for each in job["result"]["columns"])
    report = api.get(f"{place}/report")
    assert 'data-figure="column_importance"' in report.text
    assert report.headers["ETag"] != tag
    other = api.get("/api/v1/models/drawn/versions/1.1.0/figures").json()["figures"]
    assert not {each["name"]: each for each in other}["column_importance"]["applies"], "of this version alone"
