"""Model log: everything that is appended about one model, in one object, so that it is compared and swapped as one.

    <prefix>/state/<model_id>/log.jsonl     lines `deployments {…}`, `archived {…}`, `tombstones {…}`, oldest first

Each word's lines, without the word, are the file of that name of a registry in a folder. One object and not three: who
deploys relies on no version being purged meanwhile, and who purges on none being deployed.
"""

from collections.abc import Iterable, Mapping

from ml_workbench_service.integrations.deployment_history import HISTORY_FILE
from ml_workbench_service.learning.bundle.endings import ARCHIVED_FILE, TOMBSTONES_FILE

FILES = (TOMBSTONES_FILE, ARCHIVED_FILE, HISTORY_FILE)
_WORDS = {name: name.removesuffix(".jsonl").encode() for name in FILES}


def lines_for(file_name: str, text: str) -> bytes:
    """Lines of a folder's file as they are appended to the log."""
    return b"".join(b"%b %b\n" % (_WORDS[file_name], line.encode()) for line in text.splitlines())


def files_of(content: bytes) -> Mapping[str, bytes]:
    """What each file of a folder would hold."""
    found: dict[bytes, list[bytes]] = {word: [] for word in _WORDS.values()}
    for line in content.splitlines():
        word, _, rest = line.partition(b" ")
        if word in found:  # else one that a later release has
            found[word].append(rest + b"\n")
    return {name: b"".join(found[word]) for name, word in _WORDS.items()}


def is_foreign(added: bytes, own: Iterable[bytes]) -> bool:
    """Whether somebody else has appended a line."""
    return not set(added.splitlines()) <= set(own)
