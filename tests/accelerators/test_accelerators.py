"""One conformance suite for every accelerator, and how the best available one is chosen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from ml_workbench_service.accelerators import Accelerator, choose, inference_providers
from ml_workbench_service.accelerators.cpu import MOST_THREADS, Cpu
from ml_workbench_service.accelerators.cuda import Cuda, is_hidden

ROOT = Path(__file__).resolve().parents[2]
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


@every_accelerator
def test_the_providers_that_it_offers_run_here(kind: type[Accelerator]) -> None:
    offered = [each if isinstance(each, str) else each[0] for each in kind().inference_providers()]
    assert set(offered) <= set(onnxruntime.get_available_providers())
    if offered:
        assert offered[-1] == "CPUExecutionProvider", "what the hardware lacks, the processor does"
        assert inference_providers(kind.name) == kind().inference_providers()
    else:
        assert inference_providers(kind.name) == ("CPUExecutionProvider",)


def test_asking_what_answers_loads_no_torch() -> None:
    code = (
        "import sys; from ml_workbench_service import accelerators as a; a.inference_providers(); "
        "a.inference_providers('cuda'); a.kind_of('cuda'); print({'torch', 'onnx', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


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
