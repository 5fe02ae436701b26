"""Accelerators of other packages: found by their entry point, and left out loudly, never fatally, where broken."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service.accelerators import Accelerator, choose, inference_providers, kind_of
from ml_workbench_service.accelerators.choice import plugins

WHOLE = """
from ml_workbench_service.accelerators import Accelerator
class {cls}(Accelerator):
    name = "{name}"
    preference = {preference}
    def is_available(self):
        return {available}
    def for_training(self):
        import torch
        return torch.device("cpu")
    def inference_providers(self):
        return {providers}
"""


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test installs is unknown after it."""
    plugins.faults()
    monkeypatch.setattr(Accelerator, "known", dict(Accelerator.known))
    before = dict(plugins._faults)
    yield
    plugins._faults.clear()
    plugins._faults.update(before)


Install = Callable[..., dict[str, str]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("fpga", source, points_to="fpga:Fpga")` makes a package and loads its entry point; the faults."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def make(name: str, source: str, *, points_to: str | None = None) -> dict[str, str]:
        module = f"plugged_{name}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        about = tmp_path / f"acme_{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{plugins.group}]\n{name} = {points_to or module}\n")
        importlib.invalidate_caches()
        plugins.load(entry_points(group=plugins.group, name=name))
        return dict(plugins.faults())

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def source(name: str, **more: Any) -> str:
    """The source of a whole plug-in."""
    plain = {"cls": name.title(), "name": name, "preference": 50, "available": True, "providers": ()} | more
    return WHOLE.format(**plain)


@pytest.mark.parametrize("points_to", ["plugged_npu:Npu", "plugged_npu"])
def test_an_entry_point_names_the_class_or_its_module(install: Install, points_to: str) -> None:
    assert install("npu", source("npu", providers='("AzureExecutionProvider",)'), points_to=points_to) == {}
    assert choose().name == "npu"
    assert kind_of("npu").__module__ == "plugged_npu"
    assert inference_providers() == inference_providers("npu") == ("AzureExecutionProvider",)
    assert choose("cpu").name == "cpu"


def test_one_that_answers_nothing_leaves_the_answers_to_the_processor(install: Install) -> None:
    install("npu", source("npu"))
    assert inference_providers("npu") == inference_providers("cpu") == ("CPUExecutionProvider",)


BROKEN = {
    "raises at its import": ("raise OSError('libnpu.so is missing')", None, "OSError: libnpu.so is missing"),
    "does not exist": ("", "plugged_npu_of_yesterday", "No module named"),
    "names what is missing": (source("npu"), "plugged_npu:Npv", "has no attribute 'Npv'"),
    "is no accelerator": ("class Npu: pass", "plugged_npu:Npu", "is not, and does not define, the accelerator npu"),
    "is not what it names": (source("npu") + "\nclass Other: pass", "plugged_npu:Other", "is not, and does not define"),
    "has another name": (
        source("npu2", cls="Npu"),
        "plugged_npu:Npu",
        "the accelerator npu; give the entry point",
    ),
    "cannot train": (source("npu").replace("for_training", "for_trainings"), None, "lacks for_training"),
    "takes a name that is taken": (source("cpu"), None, "two accelerators are called cpu"),
    "defines one and then raises": (source("npu") + "\n1 / 0", None, "ZeroDivisionError"),
}


@pytest.mark.parametrize(("text", "points_to", "reason"), list(BROKEN.values()), ids=list(BROKEN))
def test_a_broken_plug_in_is_left_out_loudly_and_is_an_error_only_where_it_is_asked_for(
    install: Install, caplog: pytest.LogCaptureFixture, text: str, points_to: str | None, reason: str
) -> None:
    before = dict(Accelerator.known)
    faults = install("npu", text, points_to=points_to)
    assert reason in faults["npu"]
    assert Accelerator.known == before
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage() == "accelerator npu of package acme-npu==1.0 is left out"
    assert choose().name in before
    for ask in (choose, inference_providers, kind_of):
        with pytest.raises(DataValidationError, match="accelerator npu cannot be used") as caught:
            ask("npu")
        assert reason in caught.value.message
        assert "package acme-npu" in caught.value.message
        assert "cpu, cuda" in caught.value.message


def test_one_that_imports_torch_with_its_module_is_told_what_that_costs(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch as torch  # so that there is something to put back

    monkeypatch.delitem(sys.modules, "torch")
    stands_in = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')\n"  # torch loads once a process
    assert install("npu", stands_in + source("npu")) == {}
    assert "imports torch with its module" in caplog.text


def test_one_that_fails_when_asked_is_passed_over_unless_it_was_named(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("npu", source("npu", available="1 / 0", providers="1 / 0"))
    assert choose().name != "npu"
    assert inference_providers()
    assert "accelerator npu failed where it was asked what it can do" in caplog.text
    for ask in (choose, inference_providers):
        with pytest.raises(UnavailableError, match=r"npu cannot be used \(ZeroDivisionError"):
            ask("npu")


def test_one_that_is_not_here_is_an_error_where_it_is_named(install: Install) -> None:
    install("npu", source("npu", available=False))
    assert choose().name != "npu"
    with pytest.raises(UnavailableError, match=r"npu is not on this machine.* another one of cpu, cuda, npu"):
        choose("npu")


def test_an_unknown_name_is_answered_with_the_known_ones_and_the_nearest() -> None:
    for ask in (choose, inference_providers, kind_of):
        with pytest.raises(DataValidationError, match=r"did you mean cuda\? known: cpu, cuda"):
            ask("cude")


def test_equals_are_ranked_by_name_whatever_was_installed_first(install: Install) -> None:
    install("zeta", source("zeta"))
    install("alpha", source("alpha"))
    assert choose().name == "alpha"
