"""Fault injection: what goes wrong at random moments of a run, one class a fault, registered by being defined.

A fault runs in a thread of its own while the flood is on, finds everything it may break in the rig, and has healed
what it broke when its call returns. Its random moments come from its own generator: the same seed tries the same ones.
"""

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.resilience import FaultDescription, ResilienceRequest
from ml_workbench_service.resilience.rig import Need, Rig
from ml_workbench_service.resilience.schedule import Burst


class Fault(ABC):
    """One kind of fault; the first line of its docstring is its description.

    Attributes:
        name: as a request names it.
        needs: of the rig.
        fsync: the server's, where the fault means nothing with the usual `always`.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    fsync: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__ or not (cls.__doc__ or "").strip():
            raise TypeError(f"{cls.__name__} needs a `name` and a docstring whose first line describes the fault")
        if cls.name in _FAULTS:
            raise TypeError(f"the fault {cls.name} is defined twice: {_FAULTS[cls.name].__name__}, {cls.__name__}")
        _FAULTS[cls.name] = cls

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def bursts(self, request: ResilienceRequest) -> list[Burst]:
        """Records that the fault adds to the flood."""
        return []

    @abstractmethod
    def __call__(self, rig: Rig) -> None:
        """Breaks and heals, at random moments until the flood's planned end (`rig.ends_at`) or somewhat later."""

    def pauses(self, rig: Rig, *, shortest_s: float, longest_s: float) -> bool:
        """Waits a random time; False once the flood's planned end is reached."""
        return rig.sleep(self.rng.uniform(shortest_s, longest_s)) and rig.is_flooding


_FAULTS: dict[str, type[Fault]] = {}


def all_faults() -> list[type[Fault]]:
    """Every fault, by name."""
    return [_FAULTS[name] for name in sorted(_FAULTS)]


def described() -> tuple[FaultDescription, ...]:
    """Every fault with its sentence."""
    return tuple(FaultDescription(name=fault.name, summary=_summary(fault)) for fault in all_faults())


def _summary(fault: type[Fault]) -> str:
    return (fault.__doc__ or "").strip().splitlines()[0]


def fault_named(name: str, *, path: str = "body.faults") -> type[Fault]:
    """The fault of that name.

    Raises:
        DataValidationError: there is none; names the known ones and the nearest.
    """
    if name in _FAULTS:
        return _FAULTS[name]
    near = close_names(name, _FAULTS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    known = ", ".join(sorted(_FAULTS))
    message = f"There is no such fault; the known ones are {known}{hint}"
    raise DataValidationError.at(path, message, code="unknown_fault")
