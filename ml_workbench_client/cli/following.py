"""Following a job: its bar on stderr until it has ended, what came of it, the exit code. Ctrl-C ends the bar alone."""

from typing import TYPE_CHECKING, Any

from common_lib.command_line import CommandFailed, CommandLine, ExitCode

if TYPE_CHECKING:
    from ml_workbench_client.job import Job
    from ml_workbench_client.plans import Sync
    from ml_workbench_service.contracts.jobs import Job as JobState


def follow(line: CommandLine, job: "Job[Sync]") -> "JobState":
    """Shows the job until it has ended; the ended job.

    Raises:
        CommandFailed: Ctrl-C; the job goes on, and it is said how to come back.
    """
    from ml_workbench_client.display import words_of

    try:
        step = total = 0
        with line.screen.bar(_title(job)) as bar:
            for event in job.events():
                if event.type == "progress":
                    step, total = event.data.get("step") or step, event.data.get("total") or total
                    bar.step(step, total, words_of(event))
                elif event.type == "warning":
                    bar.note(f"warning: {event.data.get('message', '')}")
                else:
                    bar.state(event.type)
                    if event.type == "succeeded":  # early stopping leaves steps undone
                        bar.full()
        return job.state
    except KeyboardInterrupt:
        line.screen.note(
            f"the job goes on; come back with `ml-workbench jobs watch {job.id}`, end it with "
            f"`ml-workbench jobs cancel {job.id}`"
        )
        raise CommandFailed("", ExitCode.INTERRUPTED) from None


def check_success(line: CommandLine, state: "JobState") -> None:
    """Nothing of a job that succeeded.

    Raises:
        CommandFailed: it failed or was cancelled, with its own sentence.
    """
    if state.status.value == "succeeded":
        return
    if line.as_json:
        raise CommandFailed("")  # the document on stdout says it
    if state.error is not None:
        raise CommandFailed(f"the job failed: {state.error.message}")
    raise CommandFailed(f"the job was {state.status.value}; ask for the work again if it is still wanted")


def started(line: CommandLine, job: "Job[Sync]") -> None:
    """Says of a job that is not waited for how to come back to it; its 202 as JSON."""
    if line.as_json:
        line.screen.document(dict(job.accepted))
    else:
        line.screen.line(job.id)
        line.screen.note(f"follow it with `ml-workbench jobs watch {job.id}`")


def job_facts(state: "JobState") -> dict[str, Any]:
    """What people ask for first."""
    progress = state.progress
    return {
        "kind": state.kind.value,
        "status": state.status.value,
        "progress": f"{progress.step} of {progress.total} {progress.message}".strip() if progress.total else "",
        "figures": progress.metrics,
        "result": state.result,
        "error": state.error.message if state.error else None,
        "warnings": list(state.warnings),
        "attempt": state.attempt if state.attempt > 1 else None,
        "created": state.created_at,
        "finished": state.finished_at,
        "tracking": state.tracking.url,
    }


def _title(job: "Job[Sync]") -> str:
    made = " ".join(str(job.accepted[name]) for name in ("model_id", "version") if job.accepted.get(name))
    return made or job.id
