"""`Sections`: a group of commands whose help lists them by section, each sentence whole, however narrow it is."""

from typing import TYPE_CHECKING

from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

ORDER = ("Models", "Live", "Data", "Service")
"""Sections in the order of a model's life; others follow."""


class Sections(TyperGroup):
    """Typer's group without its short forms (`…`) of sentences."""

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Writes the sections."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ORDER}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                title = getattr(command, "rich_help_panel", None) or "Commands"
                sections.setdefault(str(title), []).append((name, _first_paragraph(command.help or "")))
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())
