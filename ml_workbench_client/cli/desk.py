"""Desk reports and importance on the terminal: tables, and what they cannot say."""

from typing import TYPE_CHECKING

from ml_workbench_figures.desk_tables import desk_tables

if TYPE_CHECKING:
    from common_lib.screen import Screen
    from ml_workbench_service.contracts.desk_report import DeskReport
    from ml_workbench_service.contracts.jobs import Job


def show(screen: "Screen", found: "DeskReport") -> None:
    """The report: its JSON, else every table and note."""
    if screen.as_json:
        screen.document(found)
        return
    verdict = found.verdict.replace("_", " ")
    facts = {"test part": f"{found.first:%Y-%m-%d} to {found.last:%Y-%m-%d}", "rows": found.num_rows}
    screen.facts(f"{found.model_id} {found.version}: {verdict}", facts)
    for table in desk_tables(found):
        screen.facts(table.title, {})
        screen.table(table.heads, table.rows)
    screen.facts("Notes", {str(number): text for number, text in enumerate(found.notes, 1)})


def show_importance(screen: "Screen", job: "Job") -> None:
    """What an importance job found: its JSON, else a line a column; nothing of one that failed."""
    if screen.as_json:
        screen.document(job)
        return
    if job.result is None:
        return
    found = job.result
    facts = {
        "part": found["part"], "rows": found["num_rows"], "loss": f"{found['mean_loss']:.4g} ({found['loss']})",
        "blocks of": f"{found['block_bars']} bars", "hypotheses counted": found["num_counted"],
    }  # fmt: skip
    screen.facts(f"{found['model_id']} {found['version']}: what is lost without each column", facts)
    screen.table(
        ("column", "loss added", "error", "share of loss", "p adjusted"),
        [
            (each["name"], *map(_short, (each["loss_added"]["value"], each["loss_added"]["error"],
                                         each["share_of_loss"], each["adjusted_p_value"])))
            for each in found["columns"]
        ],
    )  # fmt: skip


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
