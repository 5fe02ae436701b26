"""Jobs: what runs, what ran and how it ended; one job with its curve as it grows."""

import json
from collections.abc import AsyncIterator
from typing import Any

from nicegui import background_tasks, ui
from nicegui.elements.mixins.text_element import TextElement

from common_lib.exceptions import LogNotFoundError, PlatformError
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, link, note, pre, row, text, warnings
from ml_workbench_client.page.components.curves import RENAMED, LiveCurve
from ml_workbench_client.page.components.dialogs import attempted, confirmed
from ml_workbench_client.page.components.growing_list import growing_list
from ml_workbench_client.page.components.part import Part, failure, nothing
from ml_workbench_client.page.components.progress import progress_line
from ml_workbench_client.page.components.table import Cell, status_cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.jobs import Job, JobEvent, JobKind, JobStatus

EVERY_S = 3.0
MOST_LINES = 400
LOG_LINES, LOG_EVERY_S = 200, 5.0
COLUMNS = {
    "name": "Job", "kind": "Kind", "status": "Status", "progress": "Progress", "created": "Asked for", "took": "Took",
}  # fmt: skip


@view("/jobs", "Jobs")
def jobs(visit: Visit, kind: str = "", status: str = "") -> None:
    """A page of the newest, and more when asked for."""
    with card():
        with row("top-line"):
            kinds = ui.select(
                {"": "All kinds", **{each.value: words.readable(each.value) for each in JobKind}}, value=kind
            )
            states = ui.select(
                {"": "Any status", **{each.value: words.readable(each.value) for each in JobStatus}}, value=status
            )
            for each, label in ((kinds, "Kind"), (states, "Status")):
                each.props(f'outlined dense label="{label}"')
                each.style("min-width: 150px")

        listed = growing_list(
            lambda num: visit.bench.jobs(kind=kinds.value or None, status=states.value or None).first(num),
            lambda found, most: table(COLUMNS, [_row(each) for each in found], label="Jobs", page_rows=most),
            noun="jobs", every_s=EVERY_S,
            empty="No job like that. Start a training (menu, Train), a replay or an experiment.",
        )  # fmt: skip
        kinds.on_value_change(listed.refresh)
        states.on_value_change(listed.refresh)


def _row(each: Job) -> dict[str, Any]:
    progress = each.progress
    ended = each.finished_at
    took = (ended - each.started_at).total_seconds() if ended and each.started_at else None
    done = f"{progress.step} of {progress.total}" if progress.total else progress.message
    return {
        "name": Cell(name_of(each), href=words.path("jobs", each.id)),
        "kind": each.kind.value,
        "status": status_cell(each.status.value),
        "progress": done or words.NOTHING,
        "created": time_cell(each.created_at),
        "took": Cell(took, words.duration(took)),
    }


def name_of(job: Job) -> str:
    """What somebody called it."""
    return str(job.request.get("name") or job.request.get("model_id") or job.request.get("scenario") or job.id)


@view("/jobs/{job_id}", "Job")
def job(visit: Visit, job_id: str) -> None:
    """Its state, its curve and its log, as its events come."""
    state = Part(lambda: visit.bench.job(job_id).state, lambda found: _state(visit, found, again), every_s=EVERY_S)
    with card("Curve"):
        curve = LiveCurve()
    with card("Events"):
        log = ui.element("div").classes("list")
        with log:
            waiting = note("Waiting for the first event …")
    with card("Log", aside=f"what the worker printed, the last {LOG_LINES} lines"):
        Part(lambda: _log_of(visit, job_id), pre, empty="No worker has said anything yet.", every_s=LOG_EVERY_S)
    with card("Request"):
        Part(lambda: visit.bench.job(job_id).state, _request)

    async def again() -> None:
        await state.refresh()

    async def follow() -> None:
        num = 0
        try:
            async for event in _events(visit, job_id):
                if log.is_deleted:
                    return
                waiting.set_visibility(False)
                curve.add(event)
                num += 1
                if num <= MOST_LINES and (event.type != "progress" or event.data.get("message")):
                    with log:
                        _line(event)
                if event.type not in ("progress", "warning"):
                    await state.refresh()
        except PlatformError as error:
            if not log.is_deleted:
                with log:
                    failure(error)
        finally:
            curve.finish()

    task = background_tasks.create(follow(), name=f"events of job {job_id}")
    visit.client.on_delete(lambda: task.cancel())


def _events(visit: Visit, job_id: str) -> AsyncIterator[JobEvent]:
    return visit.bench.job(job_id).events()


async def _log_of(visit: Visit, job_id: str) -> str:
    """The log's end; nothing while no worker has begun."""
    try:
        return await visit.bench.job(job_id).log(LOG_LINES)
    except LogNotFoundError:
        return ""


def _line(event: JobEvent) -> None:
    said = event.data.get("message") or event.data.get("reason") or ""
    error = event.data.get("error")
    if isinstance(error, dict):
        said = error.get("message", "")
    with ui.element("div").classes("log-line"):
        TextElement(tag="time", text=words.moment(event.at))
        badge(event.type)
        TextElement(tag="span", text=str(said))


def _state(visit: Visit, found: Job, again: Any) -> None:
    async def cancel() -> None:
        sentence = "The worker stops at its next step, after a while by force. What it has published stays."
        if await confirmed("Cancel the job?", sentence, "Cancel the job", is_grave=True):
            await attempted(lambda: visit.bench.job(found.id).cancel(), "Asked to stop")
            await again()

    with card():
        text(f"{name_of(found)} ({found.kind.value})", "strong")
        progress_line(found)
        if found.error is not None:
            with ui.element("div").classes("state failed").props("role=alert"):
                ui.icon("cancel").props("aria-hidden=true")
                text(found.error.message)
        warnings(found.warnings)
        facts(
            {
                "asked for": words.moment(found.created_at),
                "began": words.moment(found.started_at),
                "ended": words.moment(found.finished_at),
                "attempt": found.attempt,
                "tracking": found.tracking.status,
                "correlation id": found.correlation_id,
                **{words.readable(RENAMED.get(name, name)): each for name, each in found.progress.metrics.items()},
            }
        )
        with row():
            if not found.status.is_final:
                button("Cancel the job", on_click=cancel)
            if found.kind is JobKind.EXPERIMENT:
                link("Its trials", words.path("experiments", found.id))
            made = found.result or {}
            if "model_id" in made:
                link("The model that it made", words.path("models", made["model_id"], version=made.get("version", "")))


def _request(found: Job) -> None:
    pre(json.dumps(found.request, indent=2, ensure_ascii=False))
    if found.result is None:
        nothing("No result yet." if not found.status.is_final else "It ended without a result.")
        return
    pre(json.dumps(found.result, indent=2, ensure_ascii=False))
