"""ADD A MODEL FAMILY = ADD ONE FILE HERE. Importing this package loads every file in it; each registers its class.

Then come the families of other packages (entry point `ml_workbench.families`): docs/integration_notes.md shows one.
"""

from importlib import import_module
from pkgutil import iter_modules

from common_lib.plugins import Plugins
from ml_workbench_service.learning.interfaces.family import Family

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

plugins = Plugins("ml_workbench.families", "family", lambda: Family.known)
plugins.faults()
