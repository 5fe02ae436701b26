"""`make gpu-check` itself: with the processor in CUDA's place it finds no difference, and a difference it finds."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ml_workbench_service.accelerators.cuda import is_hidden
from ml_workbench_service.contracts.jobs import SilentReport
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.bundle.manifest import MODEL_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.interfaces.family import Family
from ml_workbench_service.testing.synthetic import OneThread
from tools import gpu_check


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_without_a_gpu_it_says_so_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; run make gpu-check")
    assert gpu_check.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("gpu-check: no GPU here, nothing was checked: ")
    assert not is_hidden(os.environ) or "CUDA_VISIBLE_DEVICES hides every GPU" in said or "build for the proc" in said


def test_the_processor_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--on", "cpu", "--family", "linear", "--family", "lstm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:-1]] == [
        ["ok", family, about] for family in ("linear", "lstm") for about in ("training", "graph", "inference")
    ]
    assert lines[-1] == "gpu-check: everything agrees"


def test_a_family_that_cannot_train_there_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    class Absent(OneThread):
        """A device that torch knows and this machine lacks."""

        name = "absent"
        preference = -2

        def for_training(self) -> object:
            return torch.device("xpu")

    try:
        assert gpu_check.main(["--on", "absent", "--family", "linear"]) == 1
    finally:
        del Absent.known["absent"]
    assert "FAIL linear" in capsys.readouterr().out


def test_another_network_is_found_to_differ_in_training_and_in_its_answers(tmp_path: Path) -> None:
    family = gpu_check.small(Family.known["linear"])
    problem = gpu_check.task_for_check(family)
    trained = family.train(problem, accelerator=OneThread(), report=SilentReport())
    windows_NTF = problem.windows.gather(problem.windows.parts["test"])
    assert gpu_check.difference(trained, trained, windows_NTF) == 0
    other = family.train(replace(problem, seed=1), accelerator=OneThread(), report=SilentReport())
    assert gpu_check.difference(other, trained, windows_NTF) > gpu_check.TRAINED
    lengths = [family.lookback]
    export(other, tmp_path, num_features=len(gpu_check.FEATURES), lengths=lengths, seed=0)
    wrong = OnnxNetwork(tmp_path / MODEL_FILE)
    (tmp_path / "other").mkdir()
    export(trained, tmp_path / "other", num_features=len(gpu_check.FEATURES), lengths=lengths, seed=0)
    fits, words = gpu_check.compare_inference(tmp_path / "other" / MODEL_FILE, wrong, OneThread(), windows_NTF)
    assert not fits
    assert "CPUExecutionProvider differs by" in words
