"""Checks that `pyproject.toml`, `poetry.lock` and the requirements files say the same; `make lint` runs it.

The lock carries a hash of what the project asks for, so an edited dependency without a new lock is found. The
requirements are compared as they act: for every supported Python and platform, the same packages in the same versions.
CUDA's own packages are left out on purpose: the torch wheel that gets installed brings the ones that it needs.

    python -m tools.check_lock        exit status 1, and one line for each difference
"""

import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement

from tools.hash_requirements import HASHED, IMAGES, of_lock, plain

ROOT = Path(__file__).resolve().parent.parent
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")
SERVE, CONTROL, TRAIN = IMAGES
PYTHONS = ("3.11.2", "3.11.9", "3.12.8", "3.13.5", "3.14.1")
PLATFORMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
)


@dataclass(frozen=True)
class Installation:
    """What one requirements file installs: of the lock's groups, with these extras."""

    groups: frozenset[str] = frozenset({"main"})
    extras: tuple[str, ...] = ()


FILES: Mapping[str, Installation] = {
    "requirements.txt": Installation(extras=("all",)),
    "requirements-dev.txt": Installation(frozenset({"main", "dev"}), extras=("all",)),
    SERVE: Installation(),
    CONTROL: Installation(extras=("data", "page", "tracking")),
    TRAIN: Installation(extras=("all", "ray")),
}
"""Each exported file, and what it installs."""


def is_cuda(name: str) -> bool:
    """Whether a package is CUDA's own."""
    return name.startswith(CUDA_PREFIXES)


def content_hash(pyproject: Mapping[str, Any]) -> str:
    """The hash that Poetry 2 writes into the lock: of everything that decides what gets locked."""
    project, poetry = pyproject.get("project", {}), pyproject.get("tool", {}).get("poetry", {})
    relevant: dict[str, Any] = {
        "project": {
            key: project[key]
            for key in ("requires-python", "dependencies", "optional-dependencies")
            if project.get(key) is not None
        }
    }
    if pyproject.get("dependency-groups"):
        relevant["dependency-groups"] = pyproject["dependency-groups"]
    keys = ("dependencies", "source", "extras", "dev-dependencies", "group")
    relevant["tool"] = {"poetry": {key: poetry[key] for key in keys if poetry.get(key) is not None}}
    if "group" not in relevant["tool"]["poetry"]:
        relevant["tool"]["poetry"]["group"] = None
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def environments() -> Iterator[dict[str, str]]:
    """Every supported Python on every platform, as markers see them."""
    for python in PYTHONS:
        for platform in PLATFORMS:
            yield {
                **platform,
                "python_full_version": python,
                "python_version": python.rpartition(".")[0],
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "extra": "",
            }


def locked(lock: Mapping[str, Any], installation: Installation, environment: dict[str, str]) -> set[str]:
    """`name==version` of every locked package that is installed so there."""
    found = set()
    for package in lock["package"]:
        wanted = installation.groups.intersection(package["groups"])
        if is_cuda(package["name"]) or not wanted:
            continue
        markers = package.get("markers", "")
        each = [markers.get(group, "") if isinstance(markers, dict) else markers for group in wanted]
        places = [{**environment, "extra": extra} for extra in (installation.extras or ("",))]
        if any(not marker or Marker(marker).evaluate(place) for marker in each for place in places):
            found.add(f"{package['name']}=={package['version']}")
    return found


def required(text: str, environment: dict[str, str]) -> set[str]:
    """`name==version` of every line of a requirements file that applies there."""
    lines = [line for line in plain(text).splitlines() if line.strip() and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    return {
        f"{requirement.name.lower()}{requirement.specifier}"
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


def differences(root: Path) -> list[str]:
    """One sentence for each thing that does not agree; empty where all does."""
    lock = tomllib.loads((root / "poetry.lock").read_text(encoding="utf-8"))
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    found = []
    if content_hash(pyproject) != lock["metadata"]["content-hash"]:
        found.append("pyproject.toml asks for something that poetry.lock does not know")
    for file, installation in FILES.items():
        text = (root / file).read_text(encoding="utf-8")
        if any(is_cuda(line) for line in text.splitlines()):
            found.append(f"{file} names a CUDA package; the torch wheel brings its own")
        for environment in environments():
            differing = locked(lock, installation, environment) ^ required(text, environment)
            where = f"Python {environment['python_full_version']} on {environment['sys_platform']}"
            found += [f"{file} and poetry.lock differ in {name} ({where})" for name in sorted(differing)]
    if not found:
        with_hashes = {**HASHED, **{file: file for file in IMAGES}}
        found = [
            f"{file} has not the hashes of poetry.lock"
            for source, file in with_hashes.items()
            if (root / file).read_text(encoding="utf-8") != of_lock(root, source)
        ]
    return found


def main() -> None:
    """Prints the differences."""
    found = differences(ROOT)
    if found:
        sys.exit("\n".join([*found[:20], "run `make lock` and commit poetry.lock with the requirements files"]))
    print("pyproject.toml, poetry.lock and the requirements files agree")


if __name__ == "__main__":
    main()
