"""`Background`: trainings that give way to everything else on the machine, such as the service that answers meanwhile.

The example of docs/integration_notes.md, and useful as it is: one thread at a low priority.
"""

import os
from typing import Any, ClassVar

from ml_workbench_service.accelerators import Accelerator

PRIORITY = 10  # of 19: a tenth of the processor beside a busy process, all of it otherwise


class Background(Accelerator):
    """The processor, when nobody else wants it. Takes longer on a busy machine, and slows nothing else down."""

    name: ClassVar[str] = "background"
    preference: ClassVar[int] = 1  # above the plain processor's 0, below a GPU's 10

    def is_available(self) -> bool:
        """Wherever there are priorities."""
        return hasattr(os, "setpriority")

    def for_training(self) -> Any:
        """`torch.device("cpu")`; the training's process has one thread and a low priority from here on."""
        import torch

        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        return torch.device("cpu")
