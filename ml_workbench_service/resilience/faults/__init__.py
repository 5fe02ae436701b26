"""The faults, by what they break. ADD A FAULT = ADD ONE CLASS to one of these files, or to a new one."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
