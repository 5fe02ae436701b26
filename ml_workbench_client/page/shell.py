"""Shell: what stands around every view: title, menu, theme, the banner that tells of a service that is away.

    @view("/models", "Models")
    def models(visit: Visit) -> None: …

A view draws its frame at once and leaves what it asks the service to its parts (`components.part`), so that nothing
waits for anything else.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import Request
from nicegui import Client, ui
from nicegui.elements.mixins.text_element import TextElement

from common_lib.exceptions import AuthenticationError
from ml_workbench_client import AsyncWorkbench
from ml_workbench_client.page.components.blocks import heading, link, text
from ml_workbench_client.page.components.part import refresh_all
from ml_workbench_client.page.door import SESSION
from ml_workbench_client.page.options import Options
from ml_workbench_client.page.service_watch import ServiceWatch
from ml_workbench_client.page.sessions import Session

MENU = (
    ("/", "Overview", "space_dashboard"),
    ("/models", "Models", "category"),
    ("/train", "Train", "model_training"),
    ("/jobs", "Jobs", "pending_actions"),
    ("/experiments", "Experiments", "science"),
    ("/live", "Live", "sensors"),
    ("/agents", "Agents", "smart_toy"),
    ("/deployments", "Deployments", "rocket_launch"),
)
THEMES = {"auto": None, "light": False, "dark": True}
_THEME_ICONS = {"auto": "brightness_auto", "light": "light_mode", "dark": "dark_mode"}
THEME_COOKIE = "theme"
_AWAY = "The service does not answer; the page goes on by itself once it does."

_TO_ANCHOR = """<script>
// What an address's #anchor names is drawn later than the page: it is waited for.
(() => {
  const look = new MutationObserver(() => {
    const found = location.hash && document.getElementById(location.hash.slice(1));
    if (found) { look.disconnect(); setTimeout(() => found.scrollIntoView(), 50); }
  });
  if (location.hash) { look.observe(document, { childList: true, subtree: true }); }
  setTimeout(() => look.disconnect(), 20000);
})();
</script>"""

log = logging.getLogger(__name__)


class Visit:
    """One open page of one browser: through it a view speaks to the service."""

    watch: ServiceWatch
    options: Options

    def __init__(self, session: Session, client: Client) -> None:
        self._session = session
        self.client = client

    @property
    def bench(self) -> AsyncWorkbench:
        """The service, with this browser's key.

        Raises:
            AuthenticationError: somebody signed out in another tab.
        """
        if not self._session.is_open:
            raise AuthenticationError("you are signed out; sign in again")
        return self._session.bench


def view(address: str, title: str, *, named: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a page of a function that draws it; `named` is the parameter whose value stands in the heading."""

    def register(draw: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(draw)
        def page(request: Request, **given: Any) -> None:
            client = ui.context.client
            visit = Visit(request.scope[SESSION], client)
            _frame(visit, request)
            with ui.element("div").classes("view").props("id=main tabindex=-1"):
                heading(f"{title} {given[named]}" if named else title, 1).classes("title")
                draw(visit, **given)

        page.__signature__ = _with_request(draw)  # type: ignore[attr-defined]
        ui.page(address, title=f"{title} · ML Workbench", response_timeout=10.0)(page)
        return draw

    return register


def _with_request(draw: Callable[..., None]) -> Any:
    """The view's own parameters of path and query, and the request."""
    found = inspect.signature(draw)
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in list(found.parameters.values())[1:]]
    request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    return found.replace(parameters=[request, *own], return_annotation=None)


def _frame(visit: Visit, request: Request) -> None:
    ui.add_css(files("ml_workbench_client.page").joinpath("page.css").read_text("utf-8"))
    link("Skip to the content", "#main", "skip")
    with ui.header(elevated=False).classes("top"):
        toggle = ui.button(icon="menu", color=None).props('flat round dense aria-label="Menu"').classes("menu-button")
        link("ML Workbench", "/", "brand")
        ui.element("div").classes("grow")
        _theme_button(request)
        if visit.options.needs_key:
            with ui.element("form").props("method=post action=/logout"):
                ui.button(icon="logout", color=None).props('type=submit flat round dense aria-label="Sign out"')
    with ui.left_drawer(bordered=False).props("width=208 breakpoint=900").classes("side") as drawer:
        toggle.on_click(drawer.toggle)
        _menu(request.url.path, visit.options.service_url)
    _banner(visit)
    ui.add_body_html(_TO_ANCHOR)


def _menu(path: str, service_url: str) -> None:
    with ui.element("nav").props('aria-label="Views"').classes("menu"):
        for target, name, icon in MENU:
            is_here = path == target or (target != "/" and path.startswith(target + "/"))
            with ui.element("a").classes("menu-entry") as entry:
                entry.props["href"] = target
                if is_here:
                    entry.classes("here").props("aria-current=page")
                ui.icon(icon).props("aria-hidden=true")
                TextElement(tag="span", text=name)
        with ui.element("a").classes("menu-entry aside") as entry:
            entry.props["href"] = f"{service_url}/docs"
            ui.icon("api").props("aria-hidden=true")
            TextElement(tag="span", text="API")


def _theme_button(request: Request) -> None:
    """Follows the system unless told otherwise; the choice is the only thing that the page leaves in a browser."""
    chosen = request.cookies.get(THEME_COOKIE, "auto")
    chosen = chosen if chosen in THEMES else "auto"
    dark = ui.dark_mode(THEMES[chosen])
    button = ui.button(icon=_THEME_ICONS[chosen], color=None).props("flat round dense")
    button.props["aria-label"] = f"Theme: {chosen}"

    def change() -> None:
        nonlocal chosen
        names = list(THEMES)
        chosen = names[(names.index(chosen) + 1) % len(names)]
        dark.value = THEMES[chosen]
        button.props["icon"] = _THEME_ICONS[chosen]
        button.props["aria-label"] = f"Theme: {chosen}"
        button.update()
        ui.run_javascript(f"document.cookie = '{THEME_COOKIE}={chosen}; path=/; max-age=31536000; SameSite=Strict'")

    button.on_click(change)


def _banner(visit: Visit) -> None:
    with ui.element("div").classes("banner").props("role=alert") as banner:
        ui.icon("cloud_off").props("aria-hidden=true")
        sentence = text("")

    def tell(is_up: bool) -> None:
        banner.set_visibility(not is_up)
        sentence.text = "" if is_up else f"{_AWAY} {visit.watch.reason}"

    async def changed(is_up: bool) -> None:
        if visit.client.is_deleted:
            return
        tell(is_up)
        if is_up:
            await refresh_all(visit.client)

    tell(visit.watch.is_up)
    stop = visit.watch.listen(changed)
    visit.client.on_delete(stop)
