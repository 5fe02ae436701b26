"""Plug-ins: classes of other packages, named by an entry point and loaded once into the registry that they join.

    [project.entry-points."ml_workbench.accelerators"]
    background = "ml_workbench_background:Background"       the class, or a module that defines it

Law: a broken plug-in never keeps the service from starting. It is left out, with one loud line in the log that names
its package, and what it registered is forgotten; `Plugins.faults` keeps the reason for whoever asks for it by name.
"""

import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType
from typing import Any

log = logging.getLogger(__name__)


class Plugins:
    """The plug-ins of one registry; any thread may ask.

    Args:
        group: of the entry points; each has the name of its class.
        noun: what one is called in messages.
        known: the registry at this moment; a class joins it by being defined, and raises where its name is taken.

    Attributes:
        packages: the distribution that each one comes from, as `name==version`.
    """

    def __init__(self, group: str, noun: str, known: Callable[[], dict[str, type[Any]]]) -> None:
        self.group = group
        self.packages: dict[str, str] = {}
        self._noun = noun
        self._known = known
        self._faults: dict[str, str] = {}
        self._lock = threading.RLock()  # a plug-in may ask for others while it is loaded
        self._is_loaded = False

    def faults(self) -> Mapping[str, str]:
        """Loads every installed plug-in at the first call; why each broken one is left out, by its name."""
        with self._lock:
            if not self._is_loaded:
                self._is_loaded = True
                self.load(entry_points(group=self.group))
            return MappingProxyType(self._faults)

    def load(self, found: Iterable[EntryPoint]) -> None:
        """Loads these; what a broken one registered is forgotten."""
        for each in found:
            before = dict(self._known())
            package = each.module if each.dist is None else f"{each.dist.name}=={each.dist.version}"
            try:
                self._load(each, package)
            except Exception as error:  # a stranger's code may raise anything; it costs us its class alone
                self._known().clear()
                self._known().update(before)
                reason = f"{type(error).__name__}: {error}"
                self._faults[each.name] = f"the plug-in of package {package} could not be loaded ({reason})"
                log.exception("%s %s of package %s is left out", self._noun, each.name, package)

    def _load(self, entry_point: EntryPoint, package: str) -> None:
        had_torch = "torch" in sys.modules
        loaded = entry_point.load()
        kind = self._known().get(entry_point.name)
        if isinstance(loaded, ModuleType):
            is_its_own = kind is not None and f"{kind.__module__}.".startswith(f"{loaded.__name__}.")
        else:
            is_its_own = kind is not None and kind is loaded
        if kind is None or not is_its_own:
            raise TypeError(
                f"{entry_point.value} is not, and does not define, the {self._noun} {entry_point.name}; "
                "give the entry point the name of the class"
            )
        if inspect.isabstract(kind):
            raise TypeError(f"{kind.__name__} lacks {', '.join(sorted(kind.__abstractmethods__))}")
        if "torch" in sys.modules and not had_torch:
            log.warning(
                "%s %s of package %s imports torch with its module, which costs the service seconds at its start; "
                "import torch inside the methods",
                self._noun,
                entry_point.name,
                package,
            )
        self.packages[entry_point.name] = package
        log.info("%s %s comes from package %s", self._noun, entry_point.name, package)
