"""Post-training assessment: the precision that serves, and the rows that novelty is measured from.

Legend: N windows, T rows, F features, K outputs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.models import Quantization
from ml_workbench_service.learning.bundle.export import quantize
from ml_workbench_service.learning.bundle.manifest import INT8_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.bundle.quantization import MOST_COMPARED, CalibrationWindows, measure_quantization
from ml_workbench_service.learning.data.windows import Windows, evenly
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem

MOST_NOVELTY_WINDOWS = 50_000
WHOLE_PRIMARY = (
    "a follower's graph runs its primary in float32: in int8 the side would not be what the primary itself says"
)
"""Why no follower answers in int8; its classifier is small beside the primary's windows, one for each of its rows."""
Decisions = Callable[[Floats, Ints, TrainingProblem], np.ndarray]
"""What outputs (N, K) of the windows that end there lead to."""


def decide_on_int8(
    float32: OnnxNetwork, draft: Path, trained: Trained, problem: TrainingProblem, *, decisions: Decisions
) -> tuple[Quantization, OnnxNetwork | None]:
    """The measurement, and the int8 network where it was accepted; its file is removed where it lost.

    What was accepted here is measured again on other processors: the windows to do so are kept beside it.
    """
    if problem.primary is not None:
        return Quantization(accepted=False, reason=WHOLE_PRIMARY), None
    if not trained.can_quantize:
        return Quantization(accepted=False, reason="this family's answers are not put into int8"), None
    windows = problem.windows
    ends = evenly(windows.parts["calibration"], MOST_COMPARED)
    int8 = quantize(draft)
    quantization = measure_quantization(
        float32, int8, windows.gather(ends), decide=lambda outputs_NK: decisions(outputs_NK, ends, problem)
    )
    if not quantization.accepted:
        (draft / INT8_FILE).unlink()
        return quantization, None
    CalibrationWindows.choose(windows).save(draft)
    return quantization, int8


def last_rows(windows: Windows, ends: Ints) -> Floats32:
    """Those of these windows, or of as many as novelty is measured from, evenly."""
    return windows.last_rows(evenly(ends, MOST_NOVELTY_WINDOWS))
