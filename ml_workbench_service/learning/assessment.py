"""After the training: which precision serves, how wide its intervals are, and what the untouched test part says.

Order matters: int8 is judged and intervals are calibrated on the calibration part; the test part is read once, last.

Legend: N windows, T rows, F features.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_workbench_service.contracts.market import Costs, Floats, Floats32, Ints
from ml_workbench_service.contracts.models import Evaluation, Quantization
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.learning.evaluation import evaluate
from ml_workbench_service.learning.export import MOST_COMPARED, judge_quantization, quantize
from ml_workbench_service.learning.manifest import INT8_FILE
from ml_workbench_service.learning.runtime import OnnxNetwork
from ml_workbench_service.learning.uncertainty import NoveltyDetector, ResidualDistribution, Uncertainty
from ml_workbench_service.learning.windows import Part, Windows
from ml_workbench_service.market.costs import round_trip_cost

SCORING_BATCH = 4096
MOST_NOVELTY_WINDOWS = 50_000


@dataclass(frozen=True)
class Assessment:
    """What goes onto the card and into the recipe."""

    quantization: Quantization
    uncertainty: Uncertainty
    evaluation: Evaluation


def assess(
    float32: OnnxNetwork,
    draft: Path,
    windows: Windows,
    *,
    target: Target,
    costs: dict[str, Costs],
    is_simulated: bool,
) -> Assessment:
    """Decides on int8 (its file is removed where it lost), calibrates, and scores the test part."""
    quantization = _quantization(float32, draft, windows, target=target, costs=costs)
    int8 = OnnxNetwork(draft / INT8_FILE) if quantization.accepted else None
    if int8 is None:
        (draft / INT8_FILE).unlink()
    uncertainty = _calibrated(float32, int8, windows)
    return Assessment(
        quantization,
        uncertainty,
        _scored(float32, int8, windows, uncertainty=uncertainty, target=target, is_simulated=is_simulated),
    )


def predictions(float32: OnnxNetwork, int8: OnnxNetwork | None, windows: Windows, ends: Ints) -> Floats:
    """Forecasts in the target's own unit by the network that serves single requests; int8 one window at a time."""
    if int8 is not None:
        outputs = np.array([int8.predict(windows.gather(ends[n : n + 1])).outputs_NK[0, 0] for n in range(len(ends))])
    else:
        outputs = np.concatenate(
            [
                float32.predict(windows.gather(ends[begin : begin + SCORING_BATCH])).outputs_NK[:, 0]
                for begin in range(0, len(ends), SCORING_BATCH)
            ]
        )
    return outputs.astype(np.float64) * windows.label_scale_R[ends]


def _quantization(
    float32: OnnxNetwork,
    draft: Path,
    windows: Windows,
    *,
    target: Target,
    costs: dict[str, Costs],
) -> Quantization:
    ends = evenly(windows.parts["calibrate"], MOST_COMPARED)
    dead_zones = np.zeros(len(ends))
    if target.needs_price:
        for place, row in enumerate(ends):
            symbol = windows.symbols[int(windows.symbol_R[row])]
            dead_zones[place] = round_trip_cost(costs[symbol], symbol, float(windows.close_R[row]))
    return judge_quantization(
        float32, quantize(draft), windows.gather(ends), dead_zones_N=dead_zones / windows.label_scale_R[ends]
    )


def _calibrated(float32: OnnxNetwork, int8: OnnxNetwork | None, windows: Windows) -> Uncertainty:
    ends = windows.parts["calibrate"]
    residuals = windows.own_labels_R[ends] - predictions(float32, int8, windows, ends)
    unconditional = ResidualDistribution.fit(residuals, windows.label_scale_R[ends])
    assert unconditional is not None, "windows.build lets no calibration part of under 20 windows pass"
    return Uncertainty(
        conditional=ResidualDistribution.fit(residuals, windows.volatility_R[ends]),
        unconditional=unconditional,
        novelty=NoveltyDetector.fit(_last_rows(windows, windows.parts["train"]), windows.features),
    )


def _last_rows(windows: Windows, ends: Ints) -> Floats32:
    """Last rows after the window stage, in numpy: level columns less their mean over the window."""
    chosen = evenly(ends, MOST_NOVELTY_WINDOWS)
    level = np.flatnonzero(windows.scaler.is_level_F)
    rows = windows.rows_RF[chosen].copy()
    for begin in range(0, len(chosen), SCORING_BATCH):
        part = chosen[begin : begin + SCORING_BATCH]
        rows[begin : begin + len(part), level] -= windows.gather(part)[:, :, level].mean(axis=1)
    return rows


def _scored(
    float32: OnnxNetwork,
    int8: OnnxNetwork | None,
    windows: Windows,
    *,
    uncertainty: Uncertainty,
    target: Target,
    is_simulated: bool,
) -> Evaluation:
    ends = windows.parts["test"]
    labels, forecasts = windows.own_labels_R[ends], predictions(float32, int8, windows, ends)
    volatility = windows.volatility_R[ends]
    radius = uncertainty.unconditional.radius * windows.label_scale_R[ends]
    if uncertainty.conditional is not None:
        radius = np.where(np.isfinite(volatility), uncertainty.conditional.radius * np.nan_to_num(volatility), radius)
    return evaluate(
        target,
        labels_N=labels,
        predictions_N=forecasts,
        volatility_N=volatility,
        covered_N=np.abs(labels - forecasts) <= radius,
        is_simulated=is_simulated,
    )


def evenly(ends: Ints, most: int) -> Ints:
    """At most this many of them, spread evenly."""
    if len(ends) <= most:
        return ends
    return ends[np.linspace(0, len(ends) - 1, most).round().astype(np.int64)]


def part_sizes(windows: Windows) -> dict[str, int]:
    """Windows of each part, for the card."""
    names: tuple[Part, ...] = ("train", "stop", "calibrate", "test")
    return {name: len(windows.parts[name]) for name in names}
