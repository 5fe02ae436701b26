"""`jobs`: long work: list it, look at it, follow it, read its events and its log, end it."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from common_lib.command_line import CommandLine
from common_lib.screen import clean, shown
from ml_workbench_client.cli import following, opening

if TYPE_CHECKING:
    from ml_workbench_service.contracts.jobs import Job, JobEvent

jobs = typer.Typer(no_args_is_help=True)
app = typer.Typer()
app.add_typer(jobs, name="jobs", help="Trainings and other long work.", rich_help_panel="Models")
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


@jobs.command("list")
def list_(
    line: CommandLine,
    kind: Annotated[str | None, typer.Option(help="train, experiment, replay, importance or resilience.")] = None,
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed …")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
) -> None:
    """List jobs, newest first."""
    with opening.workbench(line) as bench:
        found = bench.jobs(kind=kind, status=status, limit=limit).all()
    line.screen.rows(
        "jobs",
        found,
        {
            "id": "id",
            "kind": lambda each: each.kind.value,
            "status": lambda each: each.status.value,
            "step": lambda each: f"{each.progress.step}/{each.progress.total}" if each.progress.total else "",
            "about": _about,
            "created": "created_at",
        },
        nothing="no jobs yet; start one with `ml-workbench train`",
    )


@jobs.command("show")
def show(line: CommandLine, job: JobId) -> None:
    """Show one job: how far it is, what came of it, or why it failed."""
    with opening.workbench(line) as bench:
        state = bench.job(job).state
    line.screen.thing(state, f"{state.id} ({_about(state)})", following.job_facts(state))


@jobs.command("watch")
def watch(line: CommandLine, job: JobId) -> None:
    """Follow a job until it has ended; Ctrl-C ends the watching, not the job. Ends with 1 where the job failed."""
    with opening.workbench(line) as bench:
        state = following.follow(line, bench.job(job))
    line.screen.thing(state, f"{state.id} ({_about(state)})", following.job_facts(state))
    following.check_success(line, state)


@jobs.command("log")
def log(
    line: CommandLine,
    job: JobId,
    tail: Annotated[int, typer.Option(min=1, max=10_000, help="So many lines, the last ones.")] = 200,
) -> None:
    """Print what a job's worker printed: its last lines, without secrets."""
    with opening.workbench(line) as bench:
        found = bench.job(job).log(tail)
    if line.as_json:
        line.screen.document({"id": job, "log": found})
        return
    for each in found.splitlines():
        line.screen.line(clean(each))


@jobs.command("events")
def events(
    line: CommandLine,
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
) -> None:
    """Print a job's events, one a line, until it has ended (with --json one JSON object a line)."""
    with opening.workbench(line) as bench:
        for event in bench.job(job).events(after=after):
            line.screen.line(_json_line(event) if line.as_json else _text_line(event))


@jobs.command("cancel")
def cancel(line: CommandLine, job: JobId) -> None:
    """Ask a job to stop; one that has ended stays as it is."""
    with opening.workbench(line) as bench:
        state = bench.job(job).cancel()
    line.screen.thing(state, f"{state.id} is {state.status.value}", {})


@jobs.command("delete")
def delete(line: CommandLine, job: JobId) -> None:
    """Remove the folder of a job that has ended; what it published stays."""
    with opening.workbench(line) as bench:
        bench.job(job).delete()
    line.screen.thing({"id": job, "deleted": True}, f"{job} is deleted", {})


def _about(state: "Job") -> str:
    request = state.request
    named = request.get("model_id") or (state.result or {}).get("model_id") or request.get("name")
    return shown(named or request.get("scenario") or "")


def _json_line(event: "JobEvent") -> str:
    return json.dumps(event.model_dump(mode="json"))


def _text_line(event: "JobEvent") -> str:
    from ml_workbench_client.display import words_of

    step = f"{event.data['step']}/{event.data.get('total', '')} " if event.data.get("step") is not None else ""
    error = event.data.get("error")
    said = error.get("message", "") if isinstance(error, dict) else ""
    return f"{event.at:%Y-%m-%dT%H:%M:%SZ} {event.type:<9} {step}{shown(words_of(event))}{shown(said)}".rstrip()
