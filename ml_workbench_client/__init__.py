"""Python client of the ML Workbench service: `from ml_workbench_client import Workbench`.

    wb = Workbench()
    job = wb.train(name="EUR hourly", model_type="time_series", features=["sma_20", "rsi_14"], …)
    job.progress()
    print(job.model.card.evaluation.verdict)

It imports the service's contracts and `common_lib`, and no library of frames, learning or display before it is asked
for one. Errors are the classes of `common_lib.exceptions`. The tour: docs/client.md.
"""

from ml_workbench_client.agents import AgentHandle, DeploymentHandle
from ml_workbench_client.frames import Document, Figure, HtmlPage, Rows, Table
from ml_workbench_client.job import Experiment, Job
from ml_workbench_client.listing import Listing
from ml_workbench_client.model import Model
from ml_workbench_client.sending import Patience
from ml_workbench_client.workbench import AsyncWorkbench, Bench, Workbench

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
