"""Hardware: one file each. `choose` takes the best that is there; inference runs on whatever the choice offers."""

from importlib import import_module
from pkgutil import iter_modules

from ml_workbench_service.accelerators.accelerator import Accelerator as Accelerator
from ml_workbench_service.accelerators.accelerator import choose as choose

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
