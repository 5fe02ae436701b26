"""Living child processes by what they run; one that ends while it is looked at is not among them."""

from contextlib import suppress

import psutil


def children_running(word: str, *, of: int | None = None) -> list[psutil.Process]:
    """Children of the process `of`, or ours, in whose command line the word is."""
    found = []
    for each in psutil.Process(of).children():
        with suppress(psutil.NoSuchProcess):
            if word in " ".join(each.cmdline()):
                found.append(each)
    return found
