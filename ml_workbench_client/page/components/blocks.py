"""Blocks: headings, cards, badges, lists of facts, links: what every view is put together of."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from ml_workbench_client.page.components import words

_ICONS = {"good": "check_circle", "warn": "error_outline", "bad": "cancel", "calm": "radio_button_unchecked"}


def heading(text: str, level: int = 2) -> TextElement:
    """A heading, for eyes and for screen readers."""
    return TextElement(tag=f"h{level}", text=text)


def text(words_: str, classes: str = "") -> TextElement:
    """A paragraph."""
    return TextElement(tag="p", text=words_).classes(classes)


def note(words_: str) -> TextElement:
    """What is said aside."""
    return text(words_, "note")


def link(words_: str, target: str, classes: str = "link") -> TextElement:
    """A link within the page."""
    found = TextElement(tag="a", text=words_).classes(classes)
    found.props["href"] = target
    return found


def badge(word: str, kind: str | None = None) -> Element:
    """A status word with its tone, told by icon and word as well as by colour."""
    shade = kind or words.tone(word)
    with ui.element("span").classes(f"badge tone-{shade}") as found:
        ui.icon(_ICONS[shade]).props("aria-hidden=true")
        TextElement(tag="span", text=words.readable(word))
    return found


@contextmanager
def card(title: str = "", *, aside: str = "", anchor: str = "", classes: str = "") -> Iterator[Element]:
    """A framed section with a heading."""
    with ui.element("section").classes(f"card {classes}") as found:
        if anchor:
            found.props["id"] = anchor
        if title:
            with ui.element("div").classes("card-head"):
                heading(title)
                if aside:
                    note(aside)
        yield found


@contextmanager
def row(classes: str = "") -> Iterator[Element]:
    """Side by side, wrapped where it is narrow."""
    with ui.element("div").classes(f"bar {classes}") as found:
        yield found


@contextmanager
def grid(classes: str = "") -> Iterator[Element]:
    """Cards in as many columns as fit."""
    with ui.element("div").classes(f"cards {classes}") as found:
        yield found


def facts(found: Mapping[str, Any], classes: str = "") -> None:
    """Names and values; values that are missing are a dash."""
    with ui.element("dl").classes(f"facts {classes}"):
        for name, value in found.items():
            with ui.element("div"):
                TextElement(tag="dt", text=name)
                shown = TextElement(tag="dd", text=words.plain(value))
                if isinstance(value, str) and words.is_digest(value):
                    shown.classes("digest").props["title"] = value


def figure_of(value: str, caption: str, *, kind: str = "") -> None:
    """One figure that stands out, with what it is."""
    with ui.element("div").classes("headline"):
        TextElement(tag="span", text=value).classes(f"headline-value {f'text-{kind}' if kind else ''}")
        TextElement(tag="span", text=caption).classes("headline-caption")


def button(
    words_: str, *, on_click: Callable[..., Any] | None = None, kind: Literal["plain", "main", "quiet"] = "plain",
    is_small: bool = False,
) -> ui.button:  # fmt: skip
    """A button: `main` is what somebody came to do, `quiet` what is seldom done."""
    found = ui.button(words_, on_click=on_click, color=None).props("no-caps unelevated")
    return found.classes(f"btn btn-{kind}{' small' if is_small else ''}")


def warnings(found: tuple[str, ...] | list[str]) -> None:
    """Warnings one below the other; nothing where there are none."""
    for each in found:
        with ui.element("div").classes("warning"):
            ui.icon("error_outline").props("aria-hidden=true")
            TextElement(tag="span", text=each)


def pre(content: str) -> None:
    """Text as it is written."""
    with ui.element("div").classes("pre-box").props("tabindex=0"):
        TextElement(tag="pre", text=content)
