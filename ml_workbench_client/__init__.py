"""Python client of the ML Workbench service: `from ml_workbench_client import Workbench`.

    wb = Workbench()
    job = wb.train(name="EUR hourly", model_type="time_series", features=["sma_20", "rsi_14"], …)
    job.progress()
    print(job.model.card.evaluation.verdict)

It imports the service's contracts and `common_lib`, and no library of frames, learning or display before it is asked
for one. Errors are the classes of `common_lib.exceptions`. The tour: docs/client.md.

Names are loaded when they are first used: the command line shows its help without loading any of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_workbench_client.agents import AgentHandle, DeploymentHandle
    from ml_workbench_client.frames import Document, Figure, HtmlPage, Rows, Table
    from ml_workbench_client.job import Experiment, Job
    from ml_workbench_client.listing import Listing
    from ml_workbench_client.model import Model
    from ml_workbench_client.sending import Patience
    from ml_workbench_client.workbench import AsyncWorkbench, Bench, Workbench

_MODULES = {
    "agents": ("AgentHandle", "DeploymentHandle"),
    "frames": ("Document", "Figure", "HtmlPage", "Rows", "Table"),
    "job": ("Experiment", "Job"),
    "listing": ("Listing",),
    "model": ("Model",),
    "sending": ("Patience",),
    "workbench": ("AsyncWorkbench", "Bench", "Workbench"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AgentHandle",
    "AsyncWorkbench",
    "Bench",
    "DeploymentHandle",
    "Document",
    "Experiment",
    "Figure",
    "HtmlPage",
    "Job",
    "Listing",
    "Model",
    "Patience",
    "Rows",
    "Table",
    "Workbench",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
