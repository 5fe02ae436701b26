"""Dialogs and messages: nothing that changes anything happens without a word before or after."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from common_lib.exceptions import PlatformError
from ml_workbench_client.page.components.blocks import button, heading, text


async def confirmed(title: str, sentence: str, action: str, *, is_grave: bool = False) -> bool:
    """Asks first; Escape says no."""
    with ui.dialog() as dialog, ui.card().classes("dialog"):
        dialog.props["aria-label"] = title
        heading(title)
        text(sentence)
        with ui.element("div").classes("bar end"):
            button("Cancel", on_click=lambda: dialog.submit(False), kind="quiet").props("autofocus")
            button(action, on_click=lambda: dialog.submit(True), kind="main").classes("grave" if is_grave else "")
    answer = await dialog
    dialog.delete()
    return bool(answer)


async def attempted(work: Callable[[], Awaitable[Any]], done: str = "") -> Any:
    """Does something and tells how it went; None where it failed."""
    try:
        found = await work()
    except PlatformError as error:
        details = error.details.get("errors", ()) if isinstance(error.details, dict) else ()
        lines = [error.message, *(f"{each.get('path', '')}: {each.get('message', '')}" for each in details[:6])]
        ui.notify("\n".join(lines), type="negative", multi_line=True, timeout=0, close_button="Close")
        return None
    if done:
        ui.notify(done, type="positive")
    return found if found is not None else True
