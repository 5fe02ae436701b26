"""Accelerator selection: the most preferred one that is there, or the one that the user named, and then no other."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError, UnavailableError
from common_lib.plugins import Plugins
from ml_workbench_service.accelerators.accelerator import Accelerator, Provider

PROCESSOR: Sequence[Provider] = ("CPUExecutionProvider",)
Answer = TypeVar("Answer")

plugins = Plugins("ml_workbench.accelerators", "accelerator", lambda: Accelerator.known)

log = logging.getLogger(__name__)


def choose(name: str | None = None) -> Accelerator:
    """The accelerator of a training; may import torch.

    Args:
        name: what the setting ACCELERATOR says; None takes the most preferred one that is available.

    Raises:
        DataValidationError: no accelerator is called so, or its plug-in is broken.
        UnavailableError: this machine does not have the one named.
    """
    if name is None:
        return next(kind for kind in _ranked() if _asked(kind, lambda each: each.is_available()))()
    kind = kind_of(name)
    if _answer(kind, lambda each: each.is_available()):
        return kind()
    raise UnavailableError(
        f"accelerator {name} is not on this machine, or CUDA_VISIBLE_DEVICES hides it; set ACCELERATOR to another one "
        f"of {', '.join(sorted(Accelerator.known))}, or leave it unset to take the best that is there"
    )


def inference_providers(name: str | None = None) -> Sequence[Provider]:
    """What onnxruntime shall answer with, the best first; the processor where the choice offers nothing. No torch.

    Raises:
        DataValidationError: no accelerator is called so, or its plug-in is broken.
        UnavailableError: the one named cannot say.
    """
    if name is None:
        return next(found for kind in _ranked() if (found := _asked(kind, lambda each: each.inference_providers())))
    found = _answer(kind_of(name), lambda each: each.inference_providers())
    if not found:
        log.info("accelerator %s offers onnxruntime nothing here; the processor answers", name)
    return found or PROCESSOR


def kind_of(name: str) -> type[Accelerator]:
    """The accelerator of that name, available or not.

    Raises:
        DataValidationError: there is none, or its plug-in is broken; names the known ones and the nearest.
    """
    broken = plugins.faults()
    if name in Accelerator.known:
        return Accelerator.known[name]
    known = sorted(Accelerator.known)
    if name in broken:
        raise DataValidationError.at(
            "ACCELERATOR",
            f"accelerator {name} cannot be used: {broken[name]}; mend or remove that package, or choose one of "
            f"{', '.join(known)}",
            code="broken_accelerator",
        )
    near = close_names(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataValidationError.at(
        "ACCELERATOR",
        f"no accelerator of this name is installed; {hint}known: {', '.join(known)}",
        code="unknown_accelerator",
    )


def _ranked() -> list[type[Accelerator]]:
    """Every accelerator, the most preferred first; equals by name, so that the order of installation is no matter."""
    plugins.faults()
    return sorted(Accelerator.known.values(), key=lambda kind: (-kind.preference, kind.name))


def _asked(kind: type[Accelerator], question: Callable[[Accelerator], Answer]) -> Answer | None:
    """Its answer; one that raises counts as absent, since nobody asked for it by name, and the log has said why."""
    try:
        return _answer(kind, question)
    except UnavailableError:
        return None


def _answer(kind: type[Accelerator], question: Callable[[Accelerator], Answer]) -> Answer:
    try:
        return question(kind())
    except Exception as error:  # a stranger's code may raise anything
        log.exception("accelerator %s failed where it was asked what it can do", kind.name)
        raise UnavailableError(
            f"accelerator {kind.name} cannot be used ({type(error).__name__}: {error}); mend its package, or leave "
            "ACCELERATOR unset to take the best that is there"
        ) from error
