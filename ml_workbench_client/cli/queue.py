"""`queue`: the prediction queue's accounting, and what agents gave up."""

from typing import Annotated

import typer

from common_lib.command_line import CommandLine
from ml_workbench_client.cli import opening

queue = typer.Typer(invoke_without_command=True)
app = typer.Typer()
app.add_typer(queue, name="queue", help="The prediction queue's accounting.", rich_help_panel="Live")
Letter = Annotated[str, typer.Argument(metavar="LETTER", help="A dead letter's id.")]
COUNTERS = ("enqueued", "acked", "pending", "undelivered", "dropped_oldest", "expired", "dead_lettered", "balance")


@queue.callback(invoke_without_command=True)
def show(line: CommandLine) -> None:
    """Show the queue's accounting: of each group every record is somewhere, and the balance is 0."""
    with opening.workbench(line) as bench:
        found = bench.queue
    if line.as_json:
        line.screen.document(found)
        return
    line.screen.facts(
        f"queue: {found.length} of {found.capacity} entries",
        {
            "policy": found.policy,
            "oldest entry, s": found.oldest_age_s,
            "outbox": found.outbox,
            "lost in the outbox": found.outbox_dropped or None,
            "refused": found.refused or None,
            "dead letters": found.dead_letters or None,
        },
    )
    rows = [[each.group, *(getattr(each, name) for name in COUNTERS)] for each in found.groups]
    if rows:
        line.screen.table(["group", *(name.replace("_", " ") for name in COUNTERS)], rows)


@queue.command("dead-letters")
def dead_letters(
    line: CommandLine, limit: Annotated[int, typer.Option(min=1, help="At most so many, oldest first.")] = 20
) -> None:
    """List entries that an agent gave up, each with the reason."""
    with opening.workbench(line) as bench:
        found = bench.dead_letters(limit=limit).all()
    line.screen.rows(
        "dead_letters",
        found,
        {"id": "id", "group": "group", "symbol": "symbol", "model": "model_id", "at": "at", "reason": "reason"},
        nothing="no dead letters",
    )


@queue.command("requeue")
def requeue(line: CommandLine, letter: Letter) -> None:
    """Put a dead letter back into the queue, for the group that gave it up."""
    with opening.workbench(line) as bench:
        found = bench.requeue(letter)
    line.screen.thing(found, f"{letter} is back in the queue for {found.group}", {"entry": found.entry_id})


@queue.command("discard")
def discard(line: CommandLine, letter: Letter) -> None:
    """Throw a dead letter away for good."""
    with opening.workbench(line) as bench:
        bench.discard(letter)
    line.screen.thing({"id": letter, "discarded": True}, f"{letter} is discarded", {})
