"""ADD A KIND OF ANSWER = ADD ONE FILE HERE. Importing this package loads all of them; each registers its decoder."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
