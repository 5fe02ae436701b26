"""Checksum manifest: every file of a bundle with size and sha256. Its own sha256 is the version's digest and ETag.

A bundle is a flat folder of plain files: links and folders in it are refused, and so are graphs with external data,
whose weights would be read from wherever the graph says.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_lib.exceptions import BundleDamagedError
from ml_workbench_service.jobs.durable_files import is_left_of
from ml_workbench_service.jobs.guarded_reading import json_object

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
"""Beside the manifest, which cannot list it (`learning.bundle.signatures`)."""
MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
WEIGHTS_FILE = "weights.safetensors"
CALIBRATION_FILE = "calibration.safetensors"
NETWORK_FILE = "network.json"
RECIPE_FILE = "recipe.json"
EVALUATION_FILE = "evaluation.parquet"
NOT_LISTED = frozenset({MANIFEST_FILE, SIGNATURE_FILE})
ONNX_END = ".onnx"
EXTERNAL = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location", re.DOTALL)
"""What external data of an ONNX tensor cannot be written without: the entry (tag 1, 8 bytes) whose key is `location`,
in each of the ways in which protobuf may spell the two numbers. By chance it stands in one of 2^80 places of weights.
"""


def write_manifest(folder: Path) -> str:
    """Lists all files of the folder, syncs each of them and the folder to disk, and returns the digest."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name not in NOT_LISTED
    }
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    return digest_of(folder)


def digest_of(folder: Path) -> str:
    """`sha256:` of the manifest itself; FileNotFoundError where there is none."""
    return "sha256:" + _sha256(folder / MANIFEST_FILE)


def size_of(folder: Path) -> int:
    """Bytes of all listed files and the manifest."""
    manifest = folder / MANIFEST_FILE
    listed = json_object(manifest.read_bytes())["files"]
    return sum(int(each["size"]) for each in listed.values()) + manifest.stat().st_size


def listed_in(content: bytes) -> Mapping[str, Mapping[str, Any]]:
    """The files that a manifest of this content lists.

    Raises:
        ValueError: it is no manifest.
    """
    files = json_object(content).get("files")
    if not isinstance(files, dict) or not all(_is_listed(each) for each in files.values()):
        raise ValueError("no manifest")
    return files


def verify(folder: Path) -> str:
    """Compares every file with the manifest and returns the digest.

    Raises:
        BundleDamagedError: a file is missing, added, a link, not what was published, or a graph with external data.
    """
    try:
        content = read_plain(folder / MANIFEST_FILE)
        listed = listed_in(content)
        with os.scandir(folder) as entries:
            kinds = {
                each.name: each.is_file(follow_symlinks=False)
                for each in entries
                if not is_left_of(each.name, SIGNATURE_FILE)  # of a killed signing, which the next one takes away
            }
        wrong = sorted(name for name, is_plain in kinds.items() if not is_plain)
        wrong = wrong or sorted((set(kinds) - NOT_LISTED) ^ set(listed))
        wrong = wrong or sorted(name for name, each in listed.items() if not _is_as_listed(folder / name, each))
    except (OSError, ValueError) as error:
        raise unreadable(folder) from error
    if wrong:
        raise BundleDamagedError(
            f"the bundle {folder.parent.name}/{folder.name} is not what was published: {', '.join(wrong)}; "
            "restore it from a backup or train it again",
            details={"files": wrong},
        )
    return "sha256:" + hashlib.sha256(content).hexdigest()


def unreadable(folder: Path) -> BundleDamagedError:
    """Of a version whose card or manifest is not there, or makes no sense."""
    return BundleDamagedError(
        f"the bundle {folder.parent.name}/{folder.name} cannot be read; restore it from a backup or train it again"
    )


def no_follow(path: str, flags: int) -> int:
    """`open`'s opener for files of bundles: a link is an error, and a pipe holds nobody up."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_plain(file: Path) -> bytes:
    """A plain file's content; raises OSError for anything else, links among it."""
    with open(file, "rb", opener=no_follow) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(f"{file.name} is no plain file")
        return stream.read()


def is_self_contained(content: bytes) -> bool:
    """Whether a graph of this content names no other file."""
    return b"location" not in content or EXTERNAL.search(content) is None  # the first look takes a tenth of the time


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_listed(each: Any) -> bool:
    return isinstance(each, dict) and isinstance(each.get("sha256"), str) and isinstance(each.get("size"), int)


def _is_as_listed(file: Path, listed: Mapping[str, Any]) -> bool:
    if file.suffix == ONNX_END:
        content = read_plain(file)
        return hashlib.sha256(content).hexdigest() == listed["sha256"] and is_self_contained(content)
    with open(file, "rb", opener=no_follow) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == str(listed["sha256"])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
