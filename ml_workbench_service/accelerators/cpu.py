"""CPU: always there. Small networks gain from two threads on a quiet machine, and little from more."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from ml_workbench_service.accelerators.accelerator import Accelerator, Provider

MOST_THREADS = 4


class Cpu(Accelerator):
    """Training on the processor, with denormals flushed to zero (they slow a recurrent network some 20-fold)."""

    name: ClassVar[str] = "cpu"
    preference: ClassVar[int] = 0

    def is_available(self) -> bool:
        """Always."""
        return True

    def for_training(self) -> Any:
        """`torch.device("cpu")`."""
        import torch

        torch.set_num_threads(min(MOST_THREADS, len(os.sched_getaffinity(0))))
        torch.set_flush_denormal(True)
        return torch.device("cpu")

    def inference_providers(self) -> Sequence[Provider]:
        """The processor's own, which onnxruntime always has."""
        return ("CPUExecutionProvider",)
