"""Every accelerator under the conformance suite, and how the best available one is chosen."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ml_workbench_service.accelerators import Accelerator, choose
from ml_workbench_service.accelerators.cpu import MOST_THREADS, Cpu
from ml_workbench_service.accelerators.cuda import Cuda, is_hidden
from ml_workbench_service.testing.accelerators import AcceleratorConformance
from ml_workbench_service.testing.fresh_interpreter import heavy_libraries_after

for _name, _kind in Accelerator.known.items():
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (AcceleratorConformance,), {"accelerator": _kind})


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_processor_is_always_there_and_takes_no_more_threads_than_help() -> None:
    assert Cpu().is_available()
    assert Cpu().for_training() == torch.device("cpu")
    assert torch.get_num_threads() == min(MOST_THREADS, len(os.sched_getaffinity(0)))


def test_cuda_says_what_torch_sees() -> None:
    assert Cuda().is_available() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [
        (None, False),
        ("0,1", False),
        ("GPU-5ebe9cd5", False),
        ("", True),
        ("-1", True),
        (" -1,0", True),
        ("0,-1", False),
    ],
)
def test_what_cuda_visible_devices_hides(visible: str | None, hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert is_hidden(environment) is hidden
    if hidden and visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert not Cuda().is_available()
        assert Cuda().inference_providers() == ()


def test_asking_what_answers_loads_no_torch() -> None:
    assert heavy_libraries_after("from ml_workbench_service import accelerators as a; a.inference_providers()") == set()


def test_the_most_preferred_available_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [kind for kind in Accelerator.known.values() if kind().is_available()]
    assert type(choose()) is max(there, key=lambda kind: kind.preference)

    monkeypatch.setattr(Accelerator, "known", dict(Accelerator.known))
    better, absent = accelerator("better", 100, True), accelerator("absent", 200, False)
    assert type(choose()) is better
    del Accelerator.known["better"]
    assert type(choose()) is not absent


def accelerator(name: str, preference: int, is_available: bool) -> type[Accelerator]:
    """Defines one, which registers it."""
    body: dict[str, Any] = {
        "name": name,
        "preference": preference,
        "is_available": lambda self: is_available,
        "for_training": lambda self: torch.device("cpu"),
    }
    return type(name.title(), (Accelerator,), body)


@pytest.mark.parametrize("body", [{"name": "nameless"}, {"preference": 1}, {"name": "cpu", "preference": 1}])
def test_an_ill_formed_accelerator_fails_where_it_is_defined(body: dict[str, Any]) -> None:
    before = dict(Accelerator.known)
    with pytest.raises(TypeError, match=r"needs a class attribute|two accelerators are called cpu"):
        type("IllFormed", (Accelerator,), dict(body))
    assert Accelerator.known == before
