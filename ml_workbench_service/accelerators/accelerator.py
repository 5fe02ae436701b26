"""`Accelerator`: where a training runs, and which onnxruntime providers answer. A class registers by being defined."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

Provider = str | tuple[str, Mapping[str, str]]
"""An execution provider as onnxruntime takes it: its name, alone or with its options."""


class Accelerator(ABC):
    """One kind of hardware. `preference` decides among those available: the highest wins.

    Torch is imported inside the methods: the API process loads these classes too, and asks for providers alone. They
    offer onnxruntime providers instead of making predictors, since they stand below them.
    """

    name: ClassVar[str]
    preference: ClassVar[int]
    known: ClassVar[dict[str, type["Accelerator"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for attribute in ("name", "preference"):
            if attribute not in cls.__dict__:
                raise TypeError(f"{cls.__name__} needs a class attribute `{attribute}`")
        if cls.name in Accelerator.known:
            raise TypeError(f"two accelerators are called {cls.name}")
        Accelerator.known[cls.name] = cls

    @abstractmethod
    def is_available(self) -> bool:
        """Whether this machine has it for training, as far as `CUDA_VISIBLE_DEVICES` shows it."""

    @abstractmethod
    def for_training(self) -> Any:
        """The `torch.device` that a training uses, prepared (threads, denormals)."""

    def inference_providers(self) -> Sequence[Provider]:
        """What onnxruntime shall answer with, the best first; empty where it cannot answer on this hardware.

        The first provider must be able to run here: it is asked for by name, and a session that leaves it out warns.
        """
        return ()
