"""Checksum manifest: every file of a bundle with size and sha256. Its own sha256 is the version's digest and ETag."""

import hashlib
import json
import os
from pathlib import Path

from common_lib.exceptions import PredictionError

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
WEIGHTS_FILE = "weights.safetensors"
CALIBRATION_FILE = "calibration.safetensors"
NETWORK_FILE = "network.json"
RECIPE_FILE = "recipe.json"
EVALUATION_FILE = "evaluation.parquet"


def write_manifest(folder: Path) -> str:
    """Lists all files of the folder, syncs each of them and the folder to disk, and returns the digest."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST_FILE
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
    listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return sum(int(each["size"]) for each in listed.values()) + manifest.stat().st_size


def verify(folder: Path) -> str:
    """Compares every file with the manifest and returns the digest.

    Raises:
        PredictionError: a file is missing, added, or not what was published.
    """
    try:
        listed = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        names = {file.name for file in folder.iterdir()} - {MANIFEST_FILE}
        wrong = sorted(names ^ set(listed)) or sorted(
            name for name, each in listed.items() if _sha256(folder / name) != each["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PredictionError(
            f"the bundle {folder.parent.name}/{folder.name} cannot be read; restore it from a backup or train it again"
        ) from error
    if wrong:
        raise PredictionError(
            f"the bundle {folder.parent.name}/{folder.name} is not what was published: {', '.join(wrong)}; "
            "restore it from a backup or train it again",
            details={"files": wrong},
        )
    return digest_of(folder)


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
