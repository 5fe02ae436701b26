"""NVIDIA GPUs: trainings through torch's CUDA build, answers through onnxruntime's; `CUDA_VISIBLE_DEVICES` hides them.

Both are asked apart, since the API process loads no torch. onnxruntime names its CUDA provider wherever its CUDA build
is installed, GPU or not, and then answers on the processor without a word; so the driver is asked for a device.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from ml_workbench_service.accelerators.accelerator import Accelerator, Provider

DRIVER = "libcuda.so.1"
PROVIDER = "CUDAExecutionProvider"
OPTIONS: Mapping[str, str] = {
    "use_tf32": "0",  # answers keep float32's precision, so that they can be compared with the processor's
    "arena_extend_strategy": "kSameAsRequested",  # windows are small; the default doubles its share of the GPU's memory
}


class Cuda(Accelerator):
    """Training on the first visible GPU with the whole dataset in its memory, and answers from there.

    Fails to pay where the network is small: a window answered alone waits longer for the GPU than the processor needs.
    """

    name: ClassVar[str] = "cuda"
    preference: ClassVar[int] = 10

    def is_available(self) -> bool:
        """Whether torch has a CUDA build and sees a device."""
        if is_hidden(os.environ):
            return False
        import torch

        return torch.cuda.is_available()

    def for_training(self) -> Any:
        """`torch.device("cuda")`; float32 stays float32, sums keep their order, and the processor's share its speed."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in another order each time
        import torch

        torch.backends.cudnn.allow_tf32 = False  # the default cuts a recurrent network's factors to ten bits
        torch.set_flush_denormal(True)
        return torch.device("cuda")

    def inference_providers(self) -> Sequence[Provider]:
        """CUDA's provider before the processor's, where onnxruntime's CUDA build and a GPU are there; else nothing."""
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers() or not _is_there():
            return ()
        _load_libraries()
        return ((PROVIDER, OPTIONS), "CPUExecutionProvider")


def is_hidden(environment: Mapping[str, str]) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` hides every GPU: CUDA reads it up to the first entry that names none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.split(",")[0].strip() in ("", "-1")


@cache
def _load_libraries() -> None:
    """CUDA and cuDNN, once, from the packages that torch or the extra `cuda` brought; it prints what it lacks."""
    import onnxruntime

    onnxruntime.preload_dlls()


def _is_there() -> bool:
    """Whether the driver shows this process a GPU."""
    if is_hidden(os.environ):
        return False
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return False
    count = ctypes.c_int(0)
    has_answered = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return has_answered and count.value > 0
