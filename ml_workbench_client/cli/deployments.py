"""`deploy`, `undeploy`, `rollback`, `deployments`: what is live, and since when."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from common_lib.command_line import CommandLine, UsageMistake
from ml_workbench_client.cli import opening

if TYPE_CHECKING:
    from ml_workbench_service.contracts.deployment import Deployment

app = typer.Typer()
PANEL = "Live"
ModelId = Annotated[str, typer.Argument(metavar="MODEL")]


@app.command("deploy", rich_help_panel=PANEL)
def deploy(
    line: CommandLine,
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="Default: the newest version.")],
    target: Annotated[str, typer.Option(help="strategy_engine, ml_integration, analysis_engine or local.")] = "local",
    scaling: Annotated[float | None, typer.Option(help="Of the signal's size, 0 to 1.")] = None,
    monitoring: Annotated[str | None, typer.Option(help="low, medium or high.")] = None,
    expected_current: Annotated[str | None, typer.Option(help="Only if this version is live now.")] = None,
    require_skill: Annotated[bool, typer.Option(help="Enforce the gate `skill` this time.")] = False,
    declared: Annotated[list[str] | None, typer.Option(help="Columns whose owner's word is taken.")] = None,
    accept_implausible: Annotated[bool, typer.Option(help="Deploy though it is too good to be true.")] = False,
    reason: Annotated[str | None, typer.Option(help="Kept with the deployment.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Deploy though the gate `skill` fails.")] = False,
) -> None:
    """Make a version live, after its gates; a failed gate ends with 4."""
    fields: dict[str, Any] = opening.given(
        deployment_target=target,
        scaling_factor=scaling,
        monitoring_level=monitoring,
        expected_current=expected_current,
        gates={"skill": True} if require_skill else None,
        declared_columns=opening.listed(declared),
        accepted_verdict="implausible" if accept_implausible else None,
        reason=reason,
        force=force or None,
    )
    with opening.workbench(line) as bench:
        deployment = opening.model_of(bench, model).deploy(**fields)
    _answer(line, deployment)


@app.command("undeploy", rich_help_panel=PANEL)
def undeploy(line: CommandLine, model: ModelId) -> None:
    """Take a model off: nothing of it is live any more, and agents go flat."""
    with opening.workbench(line) as bench:
        found = bench.model(model).undeploy()
    line.screen.thing(found, f"nothing of {model} is live", {"warnings": found.warnings})


@app.command("rollback", rich_help_panel=PANEL)
def rollback(
    line: CommandLine,
    model: ModelId,
    deployment: Annotated[str | None, typer.Option(help="Default: the one that is live.")] = None,
) -> None:
    """Deploy what was live before, with the settings it had."""
    with opening.workbench(line) as bench:
        if deployment is None:
            live = bench.deployments(model_id=model, status="live").first(1)
            if not live:
                raise UsageMistake(f"nothing of {model} is live; see `ml-workbench deployments --model {model}`")
            deployment = live[0].id
        found = bench.deployment(deployment).roll_back()
    _answer(line, found)


@app.command("deployments", rich_help_panel=PANEL)
def deployments(
    line: CommandLine,
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    status: Annotated[str | None, typer.Option(help="live, superseded, rolled_back, failed or pending.")] = None,
    at: Annotated[str | None, typer.Option(help="Those that served at this moment.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
) -> None:
    """List deployments, newest first."""
    with opening.workbench(line) as bench:
        found = bench.deployments(model_id=model, status=cast(Any, status), at=at, limit=limit).all()
    line.screen.rows(
        "deployments",
        found,
        {
            "id": "id",
            "model": "model_id",
            "version": "version",
            "status": "status",
            "target": "deployment_target",
            "live since": "live_at",
            "reason": "reason",
        },
        nothing="nothing was deployed yet; `ml-workbench deploy MODEL` does",
    )


def _answer(line: CommandLine, deployment: "Deployment") -> None:
    line.screen.thing(
        deployment,
        f"{deployment.model_id} {deployment.version} is {deployment.status} ({deployment.deployment_target})",
        {
            "before": deployment.previous_version,
            "gates": [f"{each.gate} {'passed' if each.passed else 'failed'}" for each in deployment.gate_results],
            "warnings": deployment.warnings,
            "error": deployment.error,
            "id": deployment.id,
        },
    )
