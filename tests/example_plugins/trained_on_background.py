"""Run by an interpreter that has the example installed: chooses, trains, and says what it saw as JSON."""

import json
import os
import sys

from ml_workbench_service import accelerators
from ml_workbench_service.accelerators.choice import plugins
from ml_workbench_service.families.linear import Linear
from ml_workbench_service.testing.synthetic import Recorder, cut, problem, symbol_rows

is_light = "torch" not in sys.modules and plugins.faults() == {}
providers = accelerators.inference_providers()
is_light = is_light and "torch" not in sys.modules
chosen, named = accelerators.choose(), accelerators.choose("cpu")
windows = cut(symbol_rows(num=600))
family = Linear({"epochs": 2, "lookback": 8})
trained = family.train(problem(windows), accelerator=chosen, report=Recorder())

import torch  # noqa: E402 - only now: what was chosen so far needed none

sys.stdout.write(
    json.dumps(
        {
            "chosen": chosen.name,
            "named": named.name,
            "known": sorted(set(accelerators.Accelerator.known) - {"one_thread"}),
            "package": plugins.packages["background"],
            "is_light": is_light,
            "providers": list(providers),
            "epochs_run": trained.epochs_run,
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
            "num_threads": torch.get_num_threads(),
        }
    )
)
