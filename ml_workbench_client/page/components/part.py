"""Part: a piece of a view that is read from the service: loading, empty, failing with the next step, or there.

What is there stays while the service is away (the banner tells of it), and is drawn again only when it has changed.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from nicegui import Client, background_tasks, ui
from nicegui.elements.mixins.text_element import TextElement

from common_lib.exceptions import AuthenticationError, PlatformError, UnavailableError
from ml_workbench_client.page.components.blocks import button, link, note

T = TypeVar("T")
_PARTS: WeakKeyDictionary[Client, list["Part[Any]"]] = WeakKeyDictionary()
log = logging.getLogger(__name__)


class Part(Generic[T]):
    """Fetches, then draws, again and again.

    Args:
        fetch: asks the service.
        draw: draws what was fetched; the old drawing is gone by then.
        empty: what is said where there is nothing, with the next step.
        is_empty: whether there is nothing; default: a false value.
        every_s: how often it is looked at again; 0: when the service is back, or somebody asks.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[T]], draw: Callable[[T], object], *, empty: str = "",
        is_empty: Callable[[T], bool] | None = None, every_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._fetch, self._draw, self._empty = fetch, draw, empty
        self._is_empty = is_empty or (lambda found: not found)
        self._drawn: T | None = None
        self._is_drawn = False
        self._is_busy = False
        self.box = ui.element("div").classes("part")
        with self.box:
            loading()
        parts = _parts_of(ui.context.client)
        parts[:] = [each for each in parts if not each.box.is_deleted] + [self]
        if every_s:
            ui.timer(every_s, self.refresh, immediate=False)
        background_tasks.create(self.refresh(), name="first look of a part")

    async def refresh(self) -> None:
        """Looks again; one look at a time."""
        if self._is_busy or self.box.is_deleted:
            return
        self._is_busy = True
        try:
            found = await self._fetch()
        except PlatformError as error:
            if not self.box.is_deleted and not (self._is_drawn and isinstance(error, UnavailableError)):
                self._show_failure(error)
        except Exception:
            log.exception("a part of a view failed")
            if not self.box.is_deleted:
                self._show_failure(PlatformError("The page failed here; its log (page.log) says why. Load it anew."))
        else:
            if not self.box.is_deleted and not (self._is_drawn and found == self._drawn):
                self._show(found)
        finally:
            self._is_busy = False

    def _show(self, found: T) -> None:
        self._drawn, self._is_drawn = found, True
        self.box.clear()
        with self.box:
            if self._empty and self._is_empty(found):
                nothing(self._empty)
            else:
                self._draw(found)

    def _show_failure(self, error: PlatformError) -> None:
        self._is_drawn = False
        self.box.clear()
        with self.box:
            failure(error, self.refresh)


def _parts_of(client: Client) -> list["Part[Any]"]:
    """The parts of an open page; forgotten with it, or they, who know it, would keep it for good."""
    if client not in _PARTS:
        _PARTS[client] = []
        client.on_delete(lambda: _PARTS.pop(client, None))
    return _PARTS[client]


async def refresh_all(client: Client) -> None:
    """Every part of an open page looks again, as after the service's return."""
    for each in tuple(_PARTS.get(client, ())):
        await each.refresh()


def loading() -> None:
    """Something is on its way."""
    with ui.element("div").classes("state").props("role=status"):
        ui.spinner(size="1.25em").props("aria-hidden=true")
        TextElement(tag="span", text="Loading …")


def nothing(sentence: str) -> None:
    """There is nothing, and what to do about it."""
    with ui.element("div").classes("state"):
        ui.icon("inbox").props("aria-hidden=true")
        TextElement(tag="span", text=sentence)


def failure(error: PlatformError, again: Callable[[], Awaitable[None]] | None = None) -> None:
    """What failed, as the service said it, and the next step."""
    with ui.element("div").classes("state failed").props("role=alert"):
        ui.icon("cancel").props("aria-hidden=true")
        with ui.element("div"):
            TextElement(tag="span", text=error.message)
            for each in error.details.get("errors", ())[:12] if isinstance(error.details, dict) else ():
                note(f"{each.get('path', '')}: {each.get('message', '')}")
            if error.correlation_id:
                note(f"In the service's log under {error.correlation_id}.")
        if isinstance(error, AuthenticationError):
            link("Sign in", "/login")
        elif again is not None:
            button("Try again", on_click=again, is_small=True)
