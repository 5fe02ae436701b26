"""What the service's package brings to the command line."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common_lib.command_line import CommandLine, UsageMistake
from ml_workbench_service.cli import access
from ml_workbench_service.cli.environment import settings_of_environment

if TYPE_CHECKING:
    from ml_workbench_service.integrations.backup_archive import BackupManifest

app = typer.Typer()
data = typer.Typer(no_args_is_help=True)
PANEL = "Service"
app.add_typer(data, name="data", rich_help_panel="Data")
app.add_typer(access.keys, name="keys", rich_help_panel=PANEL)
app.add_typer(access.audit, name="audit", rich_help_panel=PANEL)


@app.command("serve", rich_help_panel=PANEL)
def serve(
    line: CommandLine,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="In place of PORT.")] = None,
    host: Annotated[str | None, typer.Option(help="In place of HOST.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="In place of STATE_DIR.")] = None,
    bars: Annotated[Path | None, typer.Option(help="A folder of bars, in place of FEATURE_STORE_URL.")] = None,
) -> None:
    """Start the service in this terminal, as `make serve` does; everything else is said by the environment."""
    if bars is not None and not bars.is_dir():
        raise UsageMistake(f"{bars} is no folder; name the one that holds your bars")
    given = {
        "PORT": port,
        "HOST": host,
        "STATE_DIR": state_dir,
        "FEATURE_STORE_URL": bars and f"file://{bars.resolve()}",
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    from ml_workbench_service.main import main

    main()


@data.command("check")
def check(
    line: CommandLine,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Whose files are read, as the service would.")],
    bars_timezone: Annotated[str | None, typer.Option(help="Clock of files that do not say theirs.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 where anything is doubtful, too.")] = False,
) -> None:
    """Read every file of a folder as the service would, and say how: no service is needed, nothing is written.

    Ends with 1 where a file gives no bars (hidden ones aside).
    """
    from ml_workbench_service.cli.reading import check_folder

    check_folder(line, folder, bars_timezone=bars_timezone or os.environ.get("BARS_TIMEZONE") or None, strict=strict)


@app.command("doctor", rich_help_panel=PANEL)
def doctor(line: CommandLine) -> None:
    """Look at everything the service needs here: packages, folders, Redis, MLflow, bars, the service itself.

    Each finding that is not fine says what to do. Nothing is changed; ends with 1 where something is broken.
    """
    from ml_workbench_service.cli.doctor import examine

    examine(line)


@app.command("backup", rich_help_panel=PANEL)
def backup(
    line: CommandLine,
    target: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Such as backups/today.tar.gz.")],
) -> None:
    """Write STATE_DIR and the model registry of a running (or stopped) service as one verified archive."""
    from ml_workbench_service.jobs.private_files import keep_private
    from ml_workbench_service.workflows.back_up_state import back_up, registry_in_archives

    settings = settings_of_environment()
    keep_private()
    target.parent.mkdir(parents=True, exist_ok=True)
    with line.screen.waiting(f"{target} is written and verified"), registry_in_archives(settings) as registry:
        manifest = back_up(settings.STATE_DIR, registry, target, redis_is_external=settings.REDIS_URL is not None)
    _answer(line, manifest, f"{target} is written and verified")


@app.command("restore", rich_help_panel=PANEL)
def restore(line: CommandLine, archive: Annotated[Path, typer.Argument(metavar="ARCHIVE")]) -> None:
    """Bring an archive back into an empty STATE_DIR and an empty model registry, before the service starts."""
    from ml_workbench_service.access.audit_log import Who
    from ml_workbench_service.jobs.private_files import keep_private
    from ml_workbench_service.workflows.back_up_state import registry_in_archives
    from ml_workbench_service.workflows.restore_state import restore as bring_back

    keep_private()
    settings = settings_of_environment()
    with line.screen.waiting(f"{archive} is verified and restored"), registry_in_archives(settings) as registry:
        who = Who("command_line", client=access.person())
        manifest = bring_back(archive, settings.STATE_DIR, registry, who=who)
    _answer(line, manifest, f"{settings.STATE_DIR} and {settings.MODEL_REGISTRY_PATH} are restored")


@app.command("sign", rich_help_panel=PANEL)
def sign(
    line: CommandLine,
    model_id: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Such as 1.0.0.")],
) -> None:
    """Sign a version that came into the registry by other ways than publishing; without, it is not served.

    Its files must be as its manifest lists them. From then on the service takes its card's word for its verdict; who
    signed what stands in the audit log.
    """
    from ml_workbench_service.access.audit_log import Who
    from ml_workbench_service.cli.signing import sign as sign_it

    card = sign_it(settings_of_environment(), model_id, version, who=Who("command_line", client=access.person()))
    facts = {"id": card.id, "version": card.version, "verdict": card.evaluation.verdict, "digest": card.digest}
    line.screen.thing(facts, f"{card.id} {card.version} is signed", facts)


def _answer(line: CommandLine, manifest: "BackupManifest", title: str) -> None:
    num_bytes = sum(each.size for each in manifest.files)
    found: dict[str, Any] = {
        "num_files": len(manifest.files),
        "num_bytes": num_bytes,
        "created_at": manifest.created_at,
        "queue": manifest.queue,
        "damaged": list(manifest.damaged),
    }
    line.screen.thing(
        found,
        title,
        {
            "files": f"{len(manifest.files):,}, {num_bytes / 1e6:.1f} MB",
            "as of": manifest.created_at,
            "queue": manifest.about_the_queue,
            "damaged": [f"{each}: train it again, or restore it" for each in manifest.damaged],
        },
    )
    sys.stdout.flush()
