"""Extras: what pyproject.toml lists, what the table says of modules, and the error for a package that is missing."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common_lib.exceptions import ExtraMissingError
from ml_workbench_service.api.errors import unexpected
from ml_workbench_service.contracts.extras import DISTRIBUTION, EXTRAS, is_installed, missing_extra, require
from ml_workbench_service.runtime.table_exchange import ToldError

ROOT = Path(__file__).resolve().parents[2]
SELF_CONTAINED = ("data", "page", "tracking", "training")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def listed(pyproject: dict[str, Any]) -> dict[str, set[str]]:
    return {extra: set(lines) for extra, lines in pyproject["project"]["optional-dependencies"].items()}


def names(lines: set[str]) -> set[str]:
    """Distributions that requirements name."""
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_an_extra_within_another_is_named_whole(listed: dict[str, set[str]]) -> None:
    assert listed["data"] | listed["tracking"] < listed["training"]
    assert listed["all"] == set().union(*(listed[extra] for extra in SELF_CONTAINED))


def test_poetry_install_installs_all(pyproject: dict[str, Any], listed: dict[str, set[str]]) -> None:
    group = pyproject["tool"]["poetry"]["group"]["whole"]
    assert group.get("optional", False) is False
    assert {canonicalize_name(name) for name in group["dependencies"]} == names(listed["all"])


def test_no_dependency_of_a_replica_is_an_extras(pyproject: dict[str, Any], listed: dict[str, set[str]]) -> None:
    assert names(set(pyproject["project"]["dependencies"])) & names(set().union(*listed.values())) == set()


def test_the_table_of_modules_is_what_the_extras_bring(listed: dict[str, set[str]]) -> None:
    of_module = {
        module: {canonicalize_name(name) for name in found} for module, found in packages_distributions().items()
    }
    for extra, modules in EXTRAS.items():
        assert [module for module in modules if not of_module[module] & names(listed[extra])] == []
    every = [module for modules in EXTRAS.values() for module in modules]
    assert set().union(*(of_module[module] for module in every)) >= names(listed["all"] | listed["ray"])
    assert len(set(every)) == len(every)


def lacking(module: str) -> ModuleNotFoundError:
    """The interpreter's own error for a module that is not installed."""
    return ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_a_missing_package_is_told_with_its_extra() -> None:
    told = missing_extra(lacking("torch.nn"))
    assert told is not None
    assert told.details == {"package": "torch", "extra": "training"}
    assert f"pip install {DISTRIBUTION}[training]" in told.message
    try:
        try:
            raise lacking("polars")
        except ImportError as error:
            raise RuntimeError("the bars could not be read") from error
    except RuntimeError as error:
        found = missing_extra(error)
    assert found is not None
    assert found.details["extra"] == "data"


def test_other_errors_are_no_extras() -> None:
    assert missing_extra(ValueError("no")) is None
    assert missing_extra(lacking("somebodys_plug_in")) is None
    assert missing_extra(lacking("ml_workbench_service.nowhere")) is None


def test_whatever_answers_says_it() -> None:
    answer = unexpected(lacking("talib"))
    assert answer.status_code == 501
    assert b'"extra":"data"' in bytes(answer.body)
    told = ToldError.of(lacking("pyarrow")).error()
    assert isinstance(told, ExtraMissingError)
    assert told.details == {"package": "pyarrow", "extra": "data"}


def test_this_installation_has_them_all() -> None:
    for extra in SELF_CONTAINED:
        require(extra)
        assert is_installed(extra)


def test_documents_name_the_extras_that_there_are(listed: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"{DISTRIBUTION}\[([\w,]+)\]", text))
    assert named
    assert {extra for each in named for extra in each.split(",")} <= set(listed)
