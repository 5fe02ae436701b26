"""Progress of a job: a bar with words, for eyes and for screen readers."""

from nicegui import ui

from ml_workbench_client.page.components.blocks import badge, note
from ml_workbench_service.contracts.jobs import Job


def progress_line(job: Job) -> None:
    """Status, bar, step and message."""
    progress = job.progress
    is_done = job.status == "succeeded"  # it may have stopped before the last step that it was allowed
    share = 1.0 if is_done else progress.step / progress.total if progress.total else 0.0
    with ui.element("div").classes("progress-line"):
        badge(job.status)
        bar = ui.linear_progress(share, show_value=False).props("rounded size=8px")
        bar.props["aria-label"] = "progress"
        bar.props["indeterminate"] = job.status == "running" and not progress.total
    said = f"step {progress.step} of {progress.total}" if progress.total and not is_done else ""
    note(" · ".join(filter(None, (said, progress.message))))
