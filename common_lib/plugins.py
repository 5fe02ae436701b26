"""Plug-ins: accelerators of other packages, named by the entry point `ml_workbench.accelerators` and loaded once.

    [project.entry-points."ml_workbench.accelerators"]
    background = "ml_workbench_background:Background"       a subclass of Accelerator, or a module that defines one

Law: a broken plug-in never keeps the service from starting. It is left out, with one loud line in the log that names
its package; whoever asks for it by name gets that reason as an error (`choice.kind_of`).
"""

import inspect
import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType

from ml_workbench_service.accelerators.accelerator import Accelerator

GROUP = "ml_workbench.accelerators"

log = logging.getLogger(__name__)

_faults: dict[str, str] = {}
_lock = threading.RLock()  # a plug-in may ask for accelerators while it is loaded
_is_loaded = False


def faults() -> Mapping[str, str]:
    """Loads every installed plug-in at the first call; why each broken one is left out, by its name."""
    global _is_loaded
    with _lock:
        if not _is_loaded:
            _is_loaded = True
            _faults.update(load(entry_points(group=GROUP)))
        return MappingProxyType(_faults)


def load(found: Iterable[EntryPoint]) -> dict[str, str]:
    """Loads these; why each broken one is left out, by its name. What a broken one registered is forgotten."""
    reasons: dict[str, str] = {}
    for each in found:
        before = dict(Accelerator.known)
        package = each.dist.name if each.dist is not None else each.module
        try:
            _load(each, package)
        except Exception as error:  # a stranger's code may raise anything; it costs us its accelerator alone
            Accelerator.known.clear()
            Accelerator.known.update(before)
            reason = f"{type(error).__name__}: {error}"
            reasons[each.name] = f"the plug-in of package {package} could not be loaded ({reason})"
            log.exception("accelerator %s of package %s is left out", each.name, package)
    return reasons


def _load(entry_point: EntryPoint, package: str) -> None:
    had_torch = "torch" in sys.modules
    loaded = entry_point.load()
    kind = Accelerator.known.get(entry_point.name)
    if isinstance(loaded, ModuleType):
        is_its_own = kind is not None and f"{kind.__module__}.".startswith(f"{loaded.__name__}.")
    else:
        is_its_own = kind is not None and kind is loaded
    if kind is None or not is_its_own:
        raise TypeError(
            f"{entry_point.value} is not, and does not define, an Accelerator called {entry_point.name}; "
            "give the entry point the name of the class"
        )
    if inspect.isabstract(kind):
        raise TypeError(f"{kind.__name__} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    if "torch" in sys.modules and not had_torch:
        log.warning(
            "accelerator %s of package %s imports torch with its module, which costs the service seconds at its start; "
            "import torch inside the methods",
            entry_point.name,
            package,
        )
    log.info("accelerator %s comes from package %s", entry_point.name, package)
