"""Families of other packages: listed with their package, and left out loudly, never fatally, where broken."""

import asyncio
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from common_lib.plugins import Plugins
from ml_workbench_service import __version__, families
from ml_workbench_service.api.catalogue import list_model_types
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, families_of

Install = Callable[[str, str], Plugins]
RENAMED = """
from ml_workbench_service.families.linear import Linear
class Plugged(Linear):
    "Somebody's own way of learning."
    name = "{name}"
    is_default = False
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("mine", source)` makes a package and loads its entry point; all of it is forgotten after the test."""
    monkeypatch.setattr(Family, "known", dict(Family.known))
    plugins = Plugins(families.plugins.group, "family", lambda: Family.known)
    plugins.faults()  # what is really installed comes first
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(families, "plugins", plugins)
    modules: list[str] = []

    def make(name: str, source: str) -> Plugins:
        module = f"plugged_{name}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        about = tmp_path / f"acme_{name}-2.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 2.1\n")
        (about / "entry_points.txt").write_text(f"[ml_workbench.families]\n{name} = {module}:Plugged\n")
        importlib.invalidate_caches()
        plugins.load(entry_points(group=plugins.group, name=name))
        return plugins

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def packages() -> dict[str, str]:
    """What `/model-types` says of each family's package."""
    types = asyncio.run(list_model_types()).model_types
    return {family.name: family.package for each in types for family in each.families}


def test_a_family_is_listed_with_its_package_beside_our_own(install: Install) -> None:
    assert install("mine", RENAMED.format(name="mine")).faults() == {}
    found = packages()
    assert found.pop("mine") == "acme-mine==2.1"
    assert set(found.values()) == {f"ml-workbench-service=={__version__}"}
    assert families_of(ModelType.TIME_SERIES)[0].name == "lstm"


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("lstm", RENAMED.format(name="lstm"), "TypeError: two families are called lstm"),
        ("mine", "import a_library_that_is_not_here", "No module named"),
        ("mine", RENAMED.format(name="another"), "does not define, the family mine; give the entry point the name"),
        ("mine", RENAMED.format(name="mine") + "1 / 0", "ZeroDivisionError"),
        ("mine", RENAMED.format(name="mine").replace("False", "True"), "time_series has a default already"),
    ],
    ids=[
        "takes a name that is taken",
        "raises at its import",
        "has another name",
        "defines one and then raises",
        "would be the default",
    ],
)
def test_a_broken_one_is_left_out_with_an_error_and_every_other_stays(
    install: Install, caplog: pytest.LogCaptureFixture, name: str, source: str, reason: str
) -> None:
    before = dict(Family.known)
    faults = install(name, source).faults()
    assert reason in faults[name]
    assert f"package acme-{name}==2.1" in faults[name]
    assert Family.known == before
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage() == f"family {name} of package acme-{name}==2.1 is left out"
    assert set(packages().values()) == {f"ml-workbench-service=={__version__}"}
