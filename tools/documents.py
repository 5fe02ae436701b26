"""Tables in the project's documents: as Markdown, and in their places between two markers."""

from collections.abc import Sequence

END = "<!-- end -->"


def say(text: str) -> None:
    """A line of progress at once."""
    print(text, flush=True)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Its head, and a line a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def in_place(document: str, begin: str, table: str) -> str:
    """The document with the table between its markers; what people wrote around it stays.

    Raises:
        ValueError: the document has no such markers.
    """
    before, marker, rest = document.partition(begin + "\n")
    _, end, after = rest.partition(END)
    if not (marker and end):
        raise ValueError(f"the document has no place for this table; add {begin} and {END}")
    return f"{before}{marker}{table}\n\n{end}{after}"
