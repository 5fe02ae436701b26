"""Accelerators: one file a kind of hardware, or a plug-in (docs/integration_notes.md writes one).

`choose` takes the best that is there for training, or the one that is named; `inference_providers` says what answers.
"""

from importlib import import_module
from pkgutil import iter_modules

from ml_workbench_service.accelerators.accelerator import Accelerator as Accelerator
from ml_workbench_service.accelerators.accelerator import Provider as Provider
from ml_workbench_service.accelerators.choice import PROCESSOR as PROCESSOR
from ml_workbench_service.accelerators.choice import choose as choose
from ml_workbench_service.accelerators.choice import inference_providers as inference_providers
from ml_workbench_service.accelerators.choice import kind_of as kind_of

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
