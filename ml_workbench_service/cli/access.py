"""`keys` and `audit`: commands on the files of one STATE_DIR; a running service learns of new keys by itself."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common_lib.command_line import CommandFailed, CommandLine, ExitCode, UsageMistake
from ml_workbench_service.cli.environment import settings_of_environment

if TYPE_CHECKING:
    from ml_workbench_service.access.audit_log import AuditLog, Who
    from ml_workbench_service.access.keys import ClientKey, KeyFile
    from ml_workbench_service.settings import Settings

keys = typer.Typer(no_args_is_help=True, help="Keys of clients: make, list, rotate, revoke.")
audit = typer.Typer(no_args_is_help=True, help="The log of everything that was changed.")
Client = Annotated[str, typer.Argument(metavar="CLIENT", help="Whose key it is, such as strategy_engine.")]


@keys.command("create")
def create(
    line: CommandLine,
    client: Client,
    scopes: Annotated[
        str, typer.Option(help="read, predict, train, deploy, admin, with commas between them.")
    ] = "read,predict",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests a second at most.")] = None,
    daily: Annotated[int | None, typer.Option(min=1, help="Requests a day (of UTC) at most.")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="Days after which it ends.")] = None,
) -> None:
    """Make a key. It is shown once; what is kept is its digest. A client has at most two live keys."""
    file, log = _open()
    lives_for = None if days is None else timedelta(days=days)
    asked = _scopes(scopes)
    with log.change("key created", _who(), on=client) as change:
        text, made = file.create(client, asked, rate_per_s=rate, requests_per_day=daily, lives_for=lives_for)
        change.after = _facts(made)
    _show_key(line, text, made)


@keys.command("list")
def list_keys(line: CommandLine) -> None:
    """List the keys, ended ones too: whose, what they may do, when they were last used (to the minute)."""
    from ml_workbench_service.access.key_ring import USES_FILE, read_uses

    settings = settings_of_environment()
    file = _file(settings)
    uses = read_uses(settings.STATE_DIR / USES_FILE)
    line.screen.rows(
        "keys",
        [_told(each, uses.get(each.id)) for each in file.read()],
        {name: name for name in ("id", "client", "scopes", "state", "last_used", "limits")},
        nothing="there is no key yet; make one: ml-workbench keys create CLIENT",
    )


@keys.command("rotate")
def rotate(
    line: CommandLine,
    client: Client,
    overlap_hours: Annotated[float, typer.Option(min=0, help="So long the old one stays valid.")] = 24.0,
) -> None:
    """Make a client's next key, with the scopes and limits of its last; the old one ends after the overlap."""
    file, log = _open()
    before = {"keys": [each.id for each in file.read() if each.client == client]}
    with log.change("key rotated", _who(), on=client, before=before) as change:
        text, made = file.rotate(client, overlap=timedelta(hours=overlap_hours))
        change.after = _facts(made)
    _show_key(line, text, made)


@keys.command("revoke")
def revoke(line: CommandLine, identifier: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """End a key; a running service refuses it within half a second."""
    file, log = _open()
    before = next((_facts(each) for each in file.read() if each.id == identifier), None)
    with log.change("key revoked", _who(), on=identifier, before=before) as change:
        ended = file.revoke(identifier)
        change.after = _facts(ended)
    line.screen.thing(_told(ended, None), f"the key {ended.id} of {ended.client} has ended", {})


@audit.command("verify")
def verify_audit(
    line: CommandLine,
    kept: Annotated[
        str | None, typer.Option("--kept", metavar="NUMBER:HASH", help="A head that was noted elsewhere.")
    ] = None,
) -> None:
    """Read the whole audit log and check its chain: ends with 1 where an entry was changed, put in or taken out."""
    from ml_workbench_service.access.audit_log import AUDIT_FILE, verify
    from ml_workbench_service.contracts.audit import AuditHead

    head = None
    if kept is not None:
        number, _, digest = kept.partition(":")
        if not number.isdecimal() or len(digest) != 64:
            raise UsageMistake("--kept takes NUMBER:HASH, as `head` of GET /api/v1/audit has them")
        head = AuditHead(number=int(number), hash=digest)
    report = verify(settings_of_environment().STATE_DIR / AUDIT_FILE, kept=head)
    shown = {
        "entries": report.num_entries,
        "cut off by a kill": report.num_torn or None,
        "head": f"{report.head.number}:{report.head.hash}",
        "faults": [f"line {each.line}: {each.problem}" for each in report.faults] or None,
    }
    line.screen.thing(report, "the chain is whole" if report.is_whole else "the chain is broken", shown)
    if not report.is_whole:
        raise CommandFailed(f"{len(report.faults)} places of the audit log are not as they were written")


def _file(settings: "Settings") -> "KeyFile":
    from ml_workbench_service.access.keys import KEYS_FILE, KeyFile

    return KeyFile((settings.KEYS_FILE or settings.STATE_DIR / KEYS_FILE).resolve())


def _open() -> tuple["KeyFile", "AuditLog"]:
    from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog
    from ml_workbench_service.jobs.private_files import keep_private

    settings = settings_of_environment()
    keep_private()
    Path(settings.STATE_DIR).mkdir(parents=True, exist_ok=True)
    return _file(settings), AuditLog(settings.STATE_DIR.resolve() / AUDIT_FILE)


def _scopes(text: str) -> list[Any]:
    from ml_workbench_service.access.operations import Scope

    asked = [each.strip() for each in text.split(",") if each.strip()]
    known = [str(each) for each in Scope]
    unknown = [each for each in asked if each not in known]
    if unknown or not asked:
        raise CommandFailed(f"--scopes takes {', '.join(known)}, with commas between them", ExitCode.USAGE)
    return [Scope(each) for each in asked]


def _facts(key: "ClientKey") -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"digest"})


def _who() -> "Who":
    from ml_workbench_service.access.audit_log import Who

    return Who("command_line", client=person())


def person() -> str:
    """Who sits at this machine, as the audit log names them."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _told(key: "ClientKey", use: dict[str, float] | None) -> dict[str, Any]:
    from datetime import UTC, datetime

    from ml_workbench_service.contracts.contract import iso, utc_now

    state = "live" if key.is_live(utc_now()) else "revoked" if key.revoked_at else "ended"
    if state == "live" and key.expires_at is not None:
        state = f"until {iso(key.expires_at)[:16]}Z"
    rate = f"{key.rate_per_s:g}/s" if key.rate_per_s else ""
    quota = f"{key.requests_per_day}/d" if key.requests_per_day else ""
    return {
        "id": key.id,
        "client": key.client,
        "scopes": " ".join(key.scopes),
        "state": state,
        "last_used": None if not use else iso(datetime.fromtimestamp(int(use["used_at_s"]), tz=UTC)),
        "limits": " ".join(filter(None, (rate, quota))) or None,
    }


def _show_key(line: CommandLine, text: str, key: "ClientKey") -> None:
    shown = _told(key, None)
    facts = {"key": text, **{name: value for name, value in shown.items() if name != "last_used"}}
    line.screen.thing(facts, f"a key of {key.client}, shown this once", facts)
