"""Deploying from the page: target, size, monitoring, and the gates that the service holds against it."""

import typing
from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import button, heading, note, warnings
from ml_workbench_client.page.components.dialogs import attempted
from ml_workbench_client.page.components.todays_verdict import verdict_of
from ml_workbench_client.page.shell import Visit
from ml_workbench_service.contracts.deployment import DeploymentTarget, MonitoringLevel
from ml_workbench_service.contracts.models import ModelCard


async def ask_to_deploy(visit: Visit, found: ModelCard) -> Any:
    """Asks how, then deploys; None where nothing was deployed."""
    judged = verdict_of(found)
    with ui.dialog() as dialog, ui.card().classes("dialog"):
        dialog.props["aria-label"] = "Deploy"
        heading(f"Deploy {found.id} {found.version}?")
        if judged.verdict != "skill":
            warnings([f"The verdict is {words.readable(judged.verdict)}: {judged.reason}"])
        target = ui.select(list(typing.get_args(DeploymentTarget)), value="local", label="Target")
        size = ui.number("Size of its signal (0 to 1)", value=1.0, min=0, max=1, step=0.1)
        level = ui.select(list(typing.get_args(MonitoringLevel)), value="high", label="Monitoring")
        reason = ui.input("Reason")
        for each in (target, size, level, reason):
            each.props("outlined dense").classes("full")
        note("Monitoring: high records every prediction, medium one in ten, low one in a hundred.")
        with ui.element("div").classes("bar end"):
            button("Cancel", on_click=lambda: dialog.submit(False), kind="quiet")
            button("Deploy", on_click=lambda: dialog.submit(True), kind="main")
    try:
        if not await dialog:
            return None
        wanted: dict[str, Any] = {
            "deployment_target": target.value,
            "scaling_factor": float(size.value if size.value is not None else 1.0),
            "monitoring_level": level.value,
            "reason": reason.value or "",
        }
        return await attempted(
            lambda: visit.bench.model(found.id, found.version).deploy(**wanted), f"{found.id} {found.version} is live"
        )
    finally:
        dialog.delete()
