"""Dialogs and messages: nothing that changes anything happens without a word before or after."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from common_lib.exceptions import PlatformError
from ml_workbench_client.page.components.blocks import button, heading, text


async def confirmed(title: str, sentence: str, action: str, *, is_grave: bool = False, typed: str = "") -> bool:
    """Asks first; Escape says no.

    Args:
        typed: what has to be typed before the action can be chosen, for what cannot be undone.
    """
    with ui.dialog() as dialog, ui.card().classes("dialog"):
        dialog.props["aria-label"] = title
        heading(title)
        text(sentence)
        written = ui.input(f"Type {typed} to go on").props("autocomplete=off") if typed else None
        with ui.element("div").classes("bar end"):
            button("Cancel", on_click=lambda: dialog.submit(False), kind="quiet").props("autofocus")
            go_on = button(action, on_click=lambda: dialog.submit(True), kind="main")
            go_on.classes("grave" if is_grave else "")
            if written is not None:
                go_on.bind_enabled_from(written, "value", lambda value: value == typed)
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
