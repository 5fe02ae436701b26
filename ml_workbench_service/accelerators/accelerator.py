"""`Accelerator`: where a training runs. A class registers by being defined; the most preferred available one wins."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class Accelerator(ABC):
    """One kind of hardware. `preference` decides among those available: the highest wins.

    Torch is imported inside the methods: the API process loads these classes too.
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
        """Whether this machine has it, as far as `CUDA_VISIBLE_DEVICES` shows it."""

    @abstractmethod
    def for_training(self) -> Any:
        """The `torch.device` that a training uses, prepared (threads, denormals)."""


def choose() -> Accelerator:
    """The most preferred accelerator that is available."""
    ranked = sorted(Accelerator.known.values(), key=lambda kind: -kind.preference)
    return next(accelerator for accelerator in (kind() for kind in ranked) if accelerator.is_available())
