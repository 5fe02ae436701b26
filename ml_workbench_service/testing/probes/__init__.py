"""Synthetic problems, one file a model type, found by itself: what the conformance suite gives a family to learn."""

from importlib import import_module
from pkgutil import iter_modules

from ml_workbench_service.testing.probes.probe import Probe as Probe
from ml_workbench_service.testing.probes.probe import probe_of as probe_of

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
