"""Writes the requirements once more with the hashes that `poetry.lock` has of every file; `make lock` runs it.

    python -m tools.hash_requirements

`make setup` and the images install from these by uv, which verifies what it fetches. torch alone has none: its wheel
may come from a folder or an index of CPU builds, whose hashes the lock does not know. So pip, which takes hashes of all
requirements or of none, reads the plain files.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HASHED: Mapping[str, str] = {
    "requirements.txt": "requirements-hashed.txt",
    "requirements-dev.txt": "requirements-dev-hashed.txt",
}
"""Of each plain file the one with hashes."""
IMAGES = tuple(f"deploy/requirements/{target}.txt" for target in ("serve", "control", "train"))
"""Files of the images' targets, which have hashes alone: uv reads them, and pip nowhere."""
WITHOUT = frozenset({"torch"})


def plain(requirements: str) -> str:
    """The same without hashes, one line a package."""
    lines = (line.removesuffix(" \\") for line in requirements.splitlines() if not line.startswith("    --hash="))
    return "".join(f"{line}\n" for line in lines)


def hashed(requirements: str, lock: Mapping[str, Any]) -> str:
    """Every line with the hashes of its package's files, one a line."""
    known = {
        (package["name"], package["version"]): sorted({each["hash"] for each in package["files"]})
        for package in lock["package"]
    }
    lines = []
    for line in requirements.splitlines():
        requirement = Requirement(line)
        version = str(requirement.specifier).removeprefix("==")
        name = requirement.name.lower()
        hashes = [] if name in WITHOUT else known[name, version]
        lines.append(" \\\n    ".join([line, *(f"--hash={each}" for each in hashes)]))
    return "".join(f"{line}\n" for line in lines)


def of_lock(root: Path, file: str) -> str:
    """The text with hashes that belongs to a file, which may have some itself."""
    lock = tomllib.loads((root / "poetry.lock").read_text(encoding="utf-8"))
    return hashed(plain((root / file).read_text(encoding="utf-8")), lock)


def main() -> None:
    """Writes all files."""
    for source, file in {**HASHED, **{each: each for each in IMAGES}}.items():
        (ROOT / file).write_text(of_lock(ROOT, source), encoding="utf-8")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
