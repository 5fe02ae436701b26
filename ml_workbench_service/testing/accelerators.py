"""Conformance suite of accelerators: what every one keeps, whoever wrote it.

    from ml_workbench_service.testing.accelerators import AcceleratorConformance

    class TestBackground(AcceleratorConformance):
        accelerator = Background

What needs the hardware is skipped where it is not there. `python -m tools.gpu_check --on <name>`, in a checkout of the
service, goes further: every family trains on it, and is compared with the processor.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import onnxruntime
import pytest

from ml_workbench_service.accelerators import Accelerator, inference_providers
from ml_workbench_service.testing.fresh_interpreter import heavy_libraries_after


class AcceleratorConformance:
    """What an accelerator keeps.

    Attributes:
        accelerator: the accelerator's class.
    """

    accelerator: ClassVar[type[Accelerator]]

    @pytest.fixture
    def device(self) -> Iterator[Any]:
        """What `for_training` prepares; the number of threads and denormals are put back after the test."""
        import torch

        accelerator = self.accelerator()
        if not accelerator.is_available():
            pytest.skip(f"this machine has no {accelerator.name}")
        threads = torch.get_num_threads()
        torch.set_flush_denormal(False)
        yield accelerator.for_training()
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)

    def test_it_has_a_name_a_rank_and_a_docstring(self) -> None:
        """The name is what ACCELERATOR says; the highest `preference` that is available is taken unasked."""
        assert Accelerator.known[self.accelerator.name] is self.accelerator
        assert isinstance(self.accelerator.preference, int)
        assert self.accelerator.__doc__

    def test_it_says_whether_it_is_there(self) -> None:
        """A missing driver is a False, never an exception: every training without ACCELERATOR asks."""
        assert self.accelerator().is_available() in (True, False)

    def test_tensors_live_and_learn_on_it(self, device: Any) -> None:
        """A gradient comes back, exact, from where the weight lives."""
        import torch

        weight = torch.ones(3, device=device, requires_grad=True)
        (weight * torch.arange(3.0, device=device)).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        assert weight.grad.tolist() == [0.0, 1.0, 2.0]
        assert weight.device.type == torch.device(device).type

    def test_float32_stays_float32(self, device: Any) -> None:
        """Factors cut to ten bits (TF32) would set the graph apart from the network, and nothing would be published."""
        import torch

        factors = torch.full((64, 64), 1.0 + 2.0**-20, device=device)
        assert set((factors @ torch.eye(64, device=device)).flatten().tolist()) == {1.0 + 2.0**-20}

    def test_denormals_count_as_zero_in_training(self, device: Any) -> None:
        """They slow a recurrent network some twenty-fold: call `torch.set_flush_denormal(True)`."""
        import torch

        assert (torch.tensor(1e-38) * torch.tensor(1e-3)).item() == 0

    def test_the_providers_that_it_offers_run_here(self) -> None:
        """Only those that this onnxruntime has, the processor's last: what the hardware lacks, the processor does."""
        offered = self.accelerator().inference_providers()
        names = [each if isinstance(each, str) else each[0] for each in offered]
        assert set(names) <= set(onnxruntime.get_available_providers())
        if names:
            assert names[-1] == "CPUExecutionProvider"
        assert inference_providers(self.accelerator.name) == (offered or ("CPUExecutionProvider",))

    def test_the_choice_of_providers_loads_no_heavy_library(self) -> None:
        """Import torch inside the methods: the service's own process asks for providers, and answers without torch."""
        statements = (
            "from ml_workbench_service.accelerators import inference_providers\n"
            "importlib.import_module(sys.argv[1])\ninference_providers(sys.argv[2])"
        )
        assert heavy_libraries_after(statements, self.accelerator.__module__, self.accelerator.name) == set()
