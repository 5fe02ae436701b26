"""`page` and `version`: where the service shows itself, and which versions meet here."""

import os
import sys
from typing import Annotated
from urllib.parse import urljoin

import typer

from common_lib.command_line import CommandFailed, CommandLine, ExitCode
from common_lib.exceptions import PlatformError
from ml_workbench_client.cli import opening

app = typer.Typer()
PANEL = "Service"
LOOK_TIMEOUT_S = 5.0
FOUND, MOVED = range(200, 300), range(300, 400)


@app.command("page", rich_help_panel=PANEL)
def page(
    line: CommandLine,
    open_: Annotated[
        bool | None, typer.Option("--open/--no-open", help="In the browser; default: where this is a terminal.")
    ] = None,
) -> None:
    """Print the address of the service's page, and open it."""
    with opening.workbench(line) as bench:
        bench.health  # noqa: B018  (an error says that nobody is there)
        address = _page_of(bench.url)
    line.screen.thing({"url": address}, address, {})
    if open_ if open_ is not None else sys.stdout.isatty() and not line.as_json and _has_display():
        import webbrowser

        webbrowser.open(address)


@app.command("version", rich_help_panel=PANEL)
def version(line: CommandLine) -> None:
    """Show the versions of this program and of the service that answers."""
    from ml_workbench_client.sending import Patience
    from ml_workbench_client.workbench import Workbench
    from ml_workbench_service import __version__

    with Workbench(line.url, line.api_key, patience=Patience(num_retries=0)) as bench:
        try:
            answered = bench.health.get("version")
        except PlatformError:
            answered = None
        found = {"client": __version__, "service": answered, "url": bench.url, "python": sys.version.split()[0]}
    line.screen.thing(found, f"ml-workbench {__version__}", {**found, "service": answered or "does not answer"})


def _page_of(url: str) -> str:
    """Where `GET /` leads."""
    import httpx

    is_local = any(name in url for name in ("127.0.0.1", "localhost", "[::1]"))
    answer = httpx.get(url + "/", follow_redirects=False, timeout=LOOK_TIMEOUT_S, trust_env=not is_local)
    if answer.status_code in MOVED:
        return urljoin(url + "/", str(answer.headers.get("location", "/")))
    if answer.status_code in FOUND:
        return url + "/"
    raise CommandFailed(f"the service at {url} shows no page; its API pages are at {url}/docs", ExitCode.REFUSED)


def _has_display() -> bool:
    """Whether a browser could show anything."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
