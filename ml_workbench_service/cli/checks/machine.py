"""The machine: Python, packages, memory."""

import os
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from ml_workbench_service.cli.checks.finding import Finding
from ml_workbench_service.settings import Settings

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 15)
DISTRIBUTION = "ml-workbench-service"
LEAST_MEMORY_GB = 2.0
"""Service, embedded Redis, agent and one small training at a time; measured 1.6 GB on the embedded sample."""


def python() -> list[Finding]:
    """Its version, and where it stands."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        return [Finding("Python", "ok", text)]
    return [Finding("Python", "broken", text, "use Python 3.11 to 3.14")]


def packages() -> list[Finding]:
    """Whether everything that the service requires is installed, in a version that it works with."""
    wanted = [Requirement(each) for each in _requirements()]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    faults = [fault for each in wanted if (fault := _fault(each))]
    if not wanted:
        step = "run it from a checkout, or install the package"
        return [Finding("packages", "doubtful", "nothing says which are needed", step)]
    if faults:
        return [Finding("packages", "broken", "; ".join(faults), "install them: `make setup`, or pip install")]
    return [Finding("packages", "ok", f"all {len(wanted)} are installed")]


def memory() -> list[Finding]:
    """What is free of it."""
    found = psutil.virtual_memory()
    free_gb, whole_gb = found.available / 2**30, found.total / 2**30
    text = f"{free_gb:.1f} of {whole_gb:.1f} GB are free, {os.cpu_count()} processors"
    if free_gb < LEAST_MEMORY_GB:
        return [
            Finding("memory", "doubtful", text, f"trainings want {LEAST_MEMORY_GB:.0f} GB and more; close something")
        ]
    return [Finding("memory", "ok", text)]


def training_memory(settings: Settings) -> list[Finding]:
    """Whether a training may ask for more than the machine has."""
    whole_gb = psutil.virtual_memory().total / 2**30
    text = f"MAX_TRAINING_MEMORY is {settings.MAX_TRAINING_MEMORY:g} GB"
    if whole_gb >= settings.MAX_TRAINING_MEMORY:
        return [Finding("training memory", "ok", text)]
    step = f"set it below that: MAX_TRAINING_MEMORY={max(int(whole_gb * 0.75), 1)}"
    return [Finding("training memory", "doubtful", f"{text}, the machine has {whole_gb:.1f}", step)]


def _requirements() -> list[str]:
    """Of the checkout that this file stands in, else of the installed package."""
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
    if project.is_file():
        found = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if found.get("name") == DISTRIBUTION:
            return [str(each).replace("(", "").replace(")", "") for each in found["dependencies"]]
    try:
        return list(requires(DISTRIBUTION) or ())
    except PackageNotFoundError:
        return []


def _fault(requirement: Requirement) -> str | None:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(found.partition("+")[0], prereleases=True):
        return None
    return f"{requirement.name} is {found}, needed is {requirement.specifier}"
