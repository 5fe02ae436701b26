"""One conformance suite for every accelerator, and how the best available one is chosen."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ml_workbench_service.accelerators import Accelerator, choose
from ml_workbench_service.accelerators.cpu import MOST_THREADS, Cpu
from ml_workbench_service.accelerators.cuda import Cuda

every_accelerator = pytest.mark.parametrize("kind", list(Accelerator.known.values()), ids=list(Accelerator.known))


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_accelerator
def test_where_it_is_available_tensors_live_and_learn_on_it(kind: type[Accelerator]) -> None:
    accelerator = kind()
    if not accelerator.is_available():
        pytest.skip(f"this machine has no {kind.name}")
    device = accelerator.for_training()
    weight = torch.ones(3, device=device, requires_grad=True)
    (weight * torch.arange(3.0, device=device)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 1.0, 2.0]
    assert weight.device.type == torch.device(device).type


@every_accelerator
def test_denormals_count_as_zero_in_training(kind: type[Accelerator]) -> None:
    """They slow a recurrent network some twenty-fold."""
    accelerator = kind()
    if not accelerator.is_available():
        pytest.skip(f"this machine has no {kind.name}")
    torch.set_flush_denormal(False)
    tiny = torch.tensor(1e-38) * torch.tensor(1e-3)
    assert tiny.item() > 0
    accelerator.for_training()
    try:
        assert (torch.tensor(1e-38) * torch.tensor(1e-3)).item() == 0
    finally:
        torch.set_flush_denormal(False)


@every_accelerator
def test_it_has_a_name_a_rank_and_a_docstring(kind: type[Accelerator]) -> None:
    assert Accelerator.known[kind.name] is kind
    assert isinstance(kind.preference, int)
    assert kind.__doc__


def test_the_processor_is_always_there_and_takes_no_more_threads_than_help() -> None:
    assert Cpu().is_available()
    assert Cpu().for_training() == torch.device("cpu")
    assert torch.get_num_threads() == min(MOST_THREADS, len(os.sched_getaffinity(0)))


def test_cuda_says_what_torch_sees() -> None:
    assert Cuda().is_available() == torch.cuda.is_available()


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
