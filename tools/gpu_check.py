"""Checks CUDA against the processor: every family that learns with torch, a few steps on both; every graph, on both.

    make gpu-check                      exit status 1 where something differs or fails; 0, with a sentence, without GPU
    python -m tools.gpu_check --on cpu  the same check with another accelerator in CUDA's place (a plug-in, say)

For each family, on real daily reference rates of EUR/USD:

    training   same seed, same batches, on the processor and on the GPU; the outputs on the test part may differ by at
               most TRAINED of their standard deviation, since sums are added up in another order. Reinforcement
               learning draws its actions on the device, so there is nothing to compare.
    graph      what the GPU trained is exported and compared with the network, as before every publication.
    inference  onnxruntime's CUDA provider against its processor, on the exported graph: at most ANSWERED of the largest
               output (or of 1); and how long a window takes alone and among 4,096.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost most of a busy machine

import numpy as np

from ml_workbench_service import families as families  # loading the package registers every family
from ml_workbench_service.accelerators import Accelerator, choose, inference_providers
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.accelerators.cuda import is_hidden
from ml_workbench_service.contracts.jobs import SilentReport
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.training import ModelType, parse_target
from ml_workbench_service.learning.bundle.export import TOLERANCE as ANSWERED
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.bundle.manifest import MODEL_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem
from ml_workbench_service.resources import open_feature_store
from tools.rl_sanity import problem_of

TRAINED = 1e-3
"""On the processor, rows changed by 10⁻⁶ of their value move lstm, gru and linear by 5 · 10⁻⁶ at most; factors cut to
ten bits (TF32) would show."""
TARGETS = {ModelType.TIME_SERIES: "price_change_1d", ModelType.CLASSIFICATION: "direction_1d"}
SYMBOL, FEATURES = "EUR/USD", ("return_1", "rsi_14", "sma_20", "close")
RANGE_MS = (1_262_304_000_000, 1_420_070_400_000)  # 2010 to 2014
SMALL: dict[str, Any] = {
    "lookback": 16,
    "epochs": 2,
    "batch_size": 256,
    "dropout": 0.0,  # its random numbers are the device's own
    "timesteps": 2048,
    "total_timesteps": 2048,
}
NUM_TIMED = 200


class Watched(Cpu):
    """The processor, which remembers whether a family asked for it; one that does not learns without torch."""

    name = "watched"
    preference = -1000

    def __init__(self) -> None:
        self.was_asked = False

    def for_training(self) -> Any:
        """The processor's device."""
        self.was_asked = True
        return super().for_training()


def main(arguments: list[str] | None = None) -> int:
    """Prints one line for each family and check; the exit status."""
    parser = argparse.ArgumentParser(prog="gpu-check", description="CUDA against the processor, family by family.")
    parser.add_argument("--on", default="cuda", help="the accelerator to check (cuda)")
    parser.add_argument("--family", action="append", help="only this family; may be given more than once")
    chosen = parser.parse_args(arguments)
    absence = why_no_gpu() if chosen.on == "cuda" else ""
    if absence:
        print(f"gpu-check: no GPU here, nothing was checked: {absence}")
        return 0
    accelerator = choose(chosen.on)
    print(f"gpu-check: {_described(accelerator)}")
    failures = 0
    for name in chosen.family or sorted(Family.known):
        try:
            for fits, line in check(Family.known[name], accelerator):
                failures += not fits
                print(f"{'ok  ' if fits else 'FAIL'} {name:24} {line}")
        except Exception as error:  # one family's failure is a finding; the others are checked all the same
            failures += 1
            print(f"FAIL {name:24} {type(error).__name__}: {error}")
    print(f"gpu-check: {failures} failures" if failures else "gpu-check: everything agrees")
    return 1 if failures else 0


def why_no_gpu() -> str:
    """Why torch sees no GPU, in words; empty where it sees one."""
    import torch

    if torch.cuda.is_available():
        return ""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a build for the processor alone (docs/setup.md says where CUDA's is)"
    if is_hidden(os.environ):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    return "the NVIDIA driver shows none; nvidia-smi lists what it finds"


def check(kind: type[Family], accelerator: Accelerator) -> Iterator[tuple[bool, str]]:
    """Whether each check of a family holds, and a line about it."""
    if kind.model_type is ModelType.FEATURE_ENGINEERING:
        yield True, "its product is no network"
        return
    family, processor = small(kind), Watched()
    problem = task_for_check(family)
    wanted = family.train(problem, accelerator=processor, report=SilentReport())
    if not processor.was_asked:
        yield True, "learns without torch: no accelerator is asked for"
        return
    begun = time.perf_counter()
    found = family.train(problem, accelerator=accelerator, report=SilentReport())
    seconds = time.perf_counter() - begun
    windows_NTF = problem.windows.gather(problem.windows.parts["test"])
    if kind.model_type is ModelType.REINFORCEMENT_LEARNING:
        yield True, f"training   runs ({seconds:.1f} s); draws its actions on the device, so nothing to compare"
    else:
        share = difference(found, wanted, windows_NTF)
        yield share <= TRAINED, f"training   differs by {share:.1e} of a deviation (at most {TRAINED}); {seconds:.1f} s"
    with tempfile.TemporaryDirectory() as folder:
        lengths = sorted({family.min_window, family.lookback})
        exported = export(found, Path(folder), num_features=len(FEATURES), lengths=lengths, seed=0)
        yield True, "graph      answers like the network"
        yield compare_inference(Path(folder) / MODEL_FILE, exported, accelerator, windows_NTF)


def small(kind: type[Family]) -> Family:
    """The family with few and small steps, as far as it has these hyper-parameters."""
    fields = kind.Hyperparameters.model_fields
    units = {name: 16 for name in fields if name.endswith("_units")}
    return kind(units | {name: value for name, value in SMALL.items() if name in fields})


def task_for_check(family: Family) -> TrainingProblem:
    """Five years of daily rates, cut for this family."""
    store = open_feature_store("embedded")
    start_ms, end_ms = RANGE_MS
    (table,) = store.fetch([SYMBOL], "1d", start_ms=start_ms, end_ms=end_ms, features=[*FEATURES], as_of_ms=None)
    name = TARGETS.get(family.model_type)
    targets = () if name is None else (parse_target(name),)
    is_level = [store.kind_of(each) == "level" for each in FEATURES]
    return problem_of(table, features=FEATURES, is_level=is_level, lookback=family.lookback, split=0.4, targets=targets)


def difference(found: Trained, wanted: Trained, windows_NTF: Floats32) -> float:
    """The largest difference of the outputs, in standard deviations of what is wanted."""
    wanted_NK = wanted.predict(windows_NTF).outputs_NK.astype(np.float64)
    found_NK = found.predict(windows_NTF).outputs_NK.astype(np.float64)
    deviation_K = np.maximum(wanted_NK.std(axis=0), 1e-6)
    return float(np.max(np.abs(found_NK - wanted_NK) / deviation_K))


def compare_inference(
    file: Path, exported: OnnxNetwork, accelerator: Accelerator, windows_NTF: Floats32
) -> tuple[bool, str]:
    """Whether the accelerator's onnxruntime provider answers like the processor's."""
    providers = inference_providers(accelerator.name)
    if accelerator.name == "cuda" and providers[0] == "CPUExecutionProvider":
        return True, "inference  not checked: onnxruntime has no CUDA here (docs/integration_notes.md, extra `cuda`)"
    network = OnnxNetwork(file, providers=providers)
    wanted, found = exported.predict(windows_NTF).outputs_NK, network.predict(windows_NTF).outputs_NK
    worst = float(np.abs(found - wanted).max()) / max(1.0, float(np.abs(wanted).max()))
    many_NTF = np.resize(windows_NTF, (4096, *windows_NTF.shape[1:]))
    times = [f"{_us(each, windows_NTF[:1]):.0f} µs alone, {_us(each, many_NTF):.0f} µs for 4,096"
             for each in (network, exported)]  # fmt: skip
    fits = worst <= ANSWERED and network.provider == (
        providers[0] if isinstance(providers[0], str) else providers[0][0]
    )
    words = f"{network.provider} differs by {worst:.1e} (at most {ANSWERED}); {times[0]}; the processor {times[1]}"
    return fits, f"inference  {words}"


def _us(network: OnnxNetwork, windows_NTF: Floats32) -> float:
    """The median time of an answer, in microseconds."""
    num = max(5, NUM_TIMED // len(windows_NTF))
    times = []
    for _ in range(num):
        begun = time.perf_counter()
        network.predict(windows_NTF)
        times.append(time.perf_counter() - begun)
    return 1e6 * float(np.median(times))


def _described(accelerator: Accelerator) -> str:
    import torch

    device = torch.device(accelerator.for_training())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{accelerator.name} ({name}) against the processor, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
