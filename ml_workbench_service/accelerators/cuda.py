"""NVIDIA GPUs through torch's CUDA build; which ones are seen, `CUDA_VISIBLE_DEVICES` says."""

from typing import Any, ClassVar

from ml_workbench_service.accelerators.accelerator import Accelerator


class Cuda(Accelerator):
    """Training on the first visible GPU with the whole dataset in its memory."""

    name: ClassVar[str] = "cuda"
    preference: ClassVar[int] = 10

    def is_available(self) -> bool:
        """Whether torch has a CUDA build and sees a device."""
        import torch

        return torch.cuda.is_available()

    def for_training(self) -> Any:
        """`torch.device("cuda")`; the processor's share runs with denormals flushed too."""
        import torch

        torch.set_flush_denormal(True)
        return torch.device("cuda")
