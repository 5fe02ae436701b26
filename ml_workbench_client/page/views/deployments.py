"""Deployments: who served when, through which gates it went; roll back, undeploy."""

from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, link, note, row, text, warnings
from ml_workbench_client.page.components.dialogs import attempted, confirmed
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.table import Cell, status_cell, table, time_cell
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.deployment import Deployment

EVERY_S = 5.0
PAGE = 50
STATES = {
    "": "All", "live": "Live", "pending": "Pending", "superseded": "Superseded", "rolled_back": "Rolled back",
    "undeployed": "Undeployed", "failed": "Failed",
}  # fmt: skip


@view("/deployments", "Deployments")
def deployments(visit: Visit) -> None:
    """Newest first."""
    shown = PAGE
    with card():
        with row("top-line"):
            state = ui.select(STATES, value="").props('outlined dense label="Status"').style("min-width: 150px")

        async def fetch() -> tuple[list[Deployment], bool]:
            found = await visit.bench.deployments(status=state.value or None).first(shown + 1)
            return list(found[:shown]), len(found) > shown

        def draw(found: tuple[list[Deployment], bool]) -> None:
            table(
                {
                    "model": "Model", "version": "Version", "status": "Status", "target": "Target", "gates": "Gates",
                    "live": "Live since", "ended": "Until", "previous": "Before it",
                },
                [_row(each) for each in found[0]],
                label="Deployments",
                page_rows=shown,
            )  # fmt: skip
            if found[1]:
                button(f"Show {PAGE} more", on_click=more)

        async def more() -> None:
            nonlocal shown
            shown += PAGE
            await listed.refresh()

        listed = Part(
            fetch, draw, is_empty=lambda found: not found[0], every_s=EVERY_S,
            empty="Nothing has been deployed. Open a model and deploy it.",
        )  # fmt: skip
        state.on_value_change(listed.refresh)


def _row(each: Deployment) -> dict[str, Any]:
    failed = [gate.gate for gate in each.gate_results if not gate.passed]
    return {
        "model": Cell(each.model_id, href=words.path("deployments", each.id)),
        "version": each.version,
        "status": status_cell(each.status),
        "target": words.readable(each.deployment_target),
        "gates": Cell(
            len(failed), ", ".join(map(words.readable, failed)) or "all passed", tone="warn" if failed else None
        ),
        "live": time_cell(each.live_at),
        "ended": time_cell(each.ended_at),
        "previous": each.previous_version or words.NOTHING,
    }


@view("/deployments/{deployment_id}", "Deployment")
def deployment(visit: Visit, deployment_id: str) -> None:
    """One of them, gate by gate."""
    Part(lambda: visit.bench.deployment(deployment_id).state, lambda found: _one(visit, found), every_s=EVERY_S)


def _one(visit: Visit, found: Deployment) -> None:
    async def roll_back() -> None:
        sentence = f"{found.version} gives way to {found.previous_version or 'nothing'}, with the settings that it had."
        if await confirmed("Roll back?", sentence, "Roll back", is_grave=True):
            handle = visit.bench.deployment(found.id)
            made = await attempted(lambda: handle.roll_back(), "Rolled back")
            if made is not None:
                ui.navigate.to("/deployments")

    async def undeploy() -> None:
        sentence = f"Nothing of {found.model_id} answers live any more, and agents close their positions on it."
        if await confirmed("Undeploy?", sentence, "Undeploy", is_grave=True):
            model = visit.bench.model(found.model_id)
            if await attempted(lambda: model.undeploy(), f"{found.model_id} is not live any more") is not None:
                ui.navigate.to("/deployments")

    with card():
        with row():
            text(f"{found.model_id} {found.version}", "strong")
            badge(found.status)
        warnings([words.readable(each) for each in found.warnings])
        if found.error:
            text(found.error, "text-bad")
        facts(
            {
                "target": words.readable(found.deployment_target), "size of its signal": found.scaling_factor,
                "monitoring": found.monitoring_level, "asked for": words.moment(found.created_at),
                "live since": words.moment(found.live_at), "until": words.moment(found.ended_at),
                "version before": found.previous_version, "reason": found.reason or None, "digest": found.digest,
            }
        )  # fmt: skip
        with row():
            if found.status == "live":
                button("Roll back", on_click=roll_back)
                button("Undeploy", on_click=undeploy)
            link("The model", words.path("models", found.model_id, version=found.version))
    with card("Gates"):
        if not found.gate_results:
            note("No gate was asked.")
            return
        table(
            {"gate": "Gate", "passed": "Passed", "enforced": "Enforced", "value": "Found", "limit": "Needed"},
            [
                {
                    "gate": words.readable(each.gate),
                    "passed": Cell(each.passed, "passed" if each.passed else "failed",
                                   tone="good" if each.passed else "bad" if each.enforced else "warn"),
                    "enforced": "yes" if each.enforced else "only a warning",
                    "value": words.shortened(each.value),
                    "limit": each.limit,
                }
                for each in found.gate_results
            ],
            label="Gates",
        )  # fmt: skip
