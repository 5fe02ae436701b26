"""Growing list: the newest of a long list, and more of it when asked for."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ml_workbench_client.page.components.blocks import button, note
from ml_workbench_client.page.components.part import Part

T = TypeVar("T")
PAGE = 50


def growing_list(
    first: Callable[[int], Awaitable[Sequence[T]]], draw: Callable[[list[T], int], object], *, noun: str, empty: str,
    every_s: float = 0.0,
) -> Part[tuple[list[T], bool]]:  # fmt: skip
    """A part that begins with a page.

    Args:
        first: asks for so many from the beginning.
        draw: draws them; the second argument is how many there may be at most.
        noun: what they are, in the plural.
        empty: what is said where there is none.
        every_s: how often it is looked at again.
    """
    shown = PAGE

    async def fetch() -> tuple[list[T], bool]:
        found = await first(shown + 1)
        return list(found[:shown]), len(found) > shown

    def draw_page(found: tuple[list[T], bool]) -> None:
        draw(found[0], shown)
        if found[1]:
            button(f"Show {PAGE} more", on_click=more)
        else:
            num = len(found[0])
            note(f"{num} {noun if num > 1 else noun.removesuffix('s')}, all that there {'are' if num > 1 else 'is'}.")

    async def more() -> None:
        nonlocal shown
        shown += PAGE
        await listed.refresh()

    listed = Part(fetch, draw_page, is_empty=lambda found: not found[0], every_s=every_s, empty=empty)
    return listed
