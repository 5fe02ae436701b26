"""After the training: the graph, the precision that serves, the judge, and what the untouched test part says.

Order matters: int8 is judged and the judge is fitted on the calibration part; the test part is read once, last.

Legend: N windows, T rows, F features, K outputs.
"""

from pathlib import Path

import numpy as np

from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.models import Quantization
from ml_workbench_service.learning.bundle.export import MOST_COMPARED, export, judge_quantization, quantize
from ml_workbench_service.learning.bundle.manifest import INT8_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.calibration.conformal import NoveltyDetector
from ml_workbench_service.learning.data.windows import PARTS, Windows, evenly
from ml_workbench_service.learning.interfaces.family import Assignment, Trained
from ml_workbench_service.learning.interfaces.task import Predict, Product, Task

MOST_NOVELTY_WINDOWS = 50_000


def assess(
    trained: Trained,
    draft: Path,
    assignment: Assignment,
    *,
    task: Task,
    min_window: int,
    is_simulated: bool,
    report: Report,
) -> Product:
    """Exports the graph, decides on int8 (its file is removed where it lost), calibrates, and scores the test part."""
    windows = assignment.windows
    lengths = sorted({min_window, (min_window + windows.lookback) // 2, windows.lookback})
    float32 = export(trained, draft, num_features=len(windows.features), lengths=lengths, seed=assignment.seed)
    quantization, int8 = _quantization(float32, draft, trained, assignment, task=task)
    predict = Predict(float32, int8)
    report.check()
    ends = windows.parts["calibrate"]
    judge = task.calibrate(trained, predict.over(windows, ends), ends, assignment)
    novelty = NoveltyDetector.fit(last_rows(windows, windows.parts["train"]), windows.features)
    report.check()
    ends = windows.parts["test"]
    evaluation = task.evaluate(
        trained, judge, predict.over(windows, ends), ends, assignment, is_simulated=is_simulated, predict=predict
    )
    recipe = {"uncertainty": {**judge.to_json(), "novelty": novelty.to_json()}}
    return Product(trained.outputs, quantization, evaluation, recipe, findings=trained.findings)


def _quantization(
    float32: OnnxNetwork, draft: Path, trained: Trained, assignment: Assignment, *, task: Task
) -> tuple[Quantization, OnnxNetwork | None]:
    """The judgement, and the int8 network where it was accepted."""
    if not trained.can_quantize:
        return Quantization(accepted=False, reason="this family's answers are not put into int8"), None
    windows = assignment.windows
    ends = evenly(windows.parts["calibrate"], MOST_COMPARED)
    int8 = quantize(draft)
    quantization = judge_quantization(
        float32, int8, windows.gather(ends), decide=lambda outputs_NK: task.decisions(outputs_NK, ends, assignment)
    )
    if not quantization.accepted:
        (draft / INT8_FILE).unlink()
        return quantization, None
    return quantization, int8


def last_rows(windows: Windows, ends: Ints) -> Floats32:
    """Last rows after the window stage, in numpy: level columns less their mean over the window."""
    chosen = evenly(ends, MOST_NOVELTY_WINDOWS)
    level = np.flatnonzero(windows.scaler.is_level_F)
    rows = windows.rows_RF[chosen].copy()
    begin = 0
    for batch in Predict.batches(windows, chosen):
        rows[begin : begin + len(batch), level] -= windows.gather(batch)[:, :, level].mean(axis=1)
        begin += len(batch)
    return rows


def part_sizes(windows: Windows) -> dict[str, int]:
    """Windows of each part, for the card."""
    return {name: len(windows.parts[name]) for name in PARTS}
