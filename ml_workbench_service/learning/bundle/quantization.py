"""Post-training quantisation's acceptance: how far int8 answers lie from float32's, and how much faster they come.

int8 is onnxruntime's dynamic quantisation. Its activation scale is the batch's, so it runs, calibrates and is judged
at batch 1 only. finance.md's rule decides in training: at least 1.15 times faster here, mean |difference| at most 5 %
of the predictions' standard deviation, and the same direction on at least 98 % of the calibration part. The last two
are measured again on windows kept in the bundle (`CalibrationWindows`) where it is loaded on another processor.

Free of torch and onnx: serving measures too. Legend: N windows, T rows, F features, K outputs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_workbench_service.accelerators.processor import processor_features
from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.models import Quantization
from ml_workbench_service.contracts.prediction import Predictor, RawPrediction
from ml_workbench_service.learning.bundle.manifest import CALIBRATION_FILE
from ml_workbench_service.learning.data.windows import SCORING_ROWS, Windows, evenly

LEAST_SPEEDUP = 1.15
MOST_MEAN_DELTA = 0.05
LEAST_AGREEMENT = 0.98
NUM_TIMED, NUM_WARM = 100, 20
MOST_TIMED = 400
CLEAR = 1.15
"""A speed-up this many times above or below what it needs is not timed any longer."""
MOST_COMPARED = 2000
NUM_KEPT = 256
"""Windows of the calibration part in a bundle: finance.md's number."""

Decide = Callable[[Floats], np.ndarray]
"""What outputs (N, K) of the windows compared lead to: a direction, a class."""


@dataclass(frozen=True)
class Agreement:
    """int8 beside float32 on the same windows; differences in standard deviations of the output that suffers most.

    Both differences are None where no prediction varies: there is nothing to compare with.
    """

    mean_delta: float | None
    max_delta: float | None
    same_decisions: float

    @property
    def failures(self) -> list[str]:
        """Which bounds are exceeded."""
        if self.mean_delta is None:
            return ["the predictions do not vary, so nothing can be compared"]
        kept = (self.mean_delta <= MOST_MEAN_DELTA, self.same_decisions >= LEAST_AGREEMENT)
        return [text for passed, text in zip(kept, self.findings, strict=True) if not passed]

    @property
    def findings(self) -> list[str]:
        """Both measurements beside their bounds."""
        return [
            f"mean difference {self.mean_delta or 0:.1%} of a deviation, at most {MOST_MEAN_DELTA:.0%}",
            f"decisions agree on {self.same_decisions:.1%}, needs {LEAST_AGREEMENT:.0%}",
        ]


def measure_agreement(float32: Predictor, int8: Predictor, windows_NTF: Floats32, *, decide: Decide) -> Agreement:
    """Both networks on scaled windows: int8 one by one, as it serves; float32 says the same in batches, to the bit."""
    exact, rough = (
        np.concatenate(
            [network.predict(windows_NTF[at : at + size]).outputs_NK for at in range(0, len(windows_NTF), size)]
        ).astype(np.float64)
        for network, size in ((float32, max(1, SCORING_ROWS // windows_NTF.shape[1])), (int8, 1))
    )
    agreement = float(np.mean(decide(exact) == decide(rough)))
    varies = np.ptp(exact, axis=0) > 0
    if not varies.any():
        return Agreement(None, None, agreement)
    delta = np.abs(exact - rough)[:, varies] / exact[:, varies].std(axis=0)
    return Agreement(float(delta.mean(axis=0).max()), float(delta.max()), agreement)


def measure_quantization(float32: Predictor, int8: Predictor, windows_NTF: Floats32, *, decide: Decide) -> Quantization:
    """The whole rule, speed included, on scaled windows of the calibration part."""
    speedup = _speedup(float32, int8, windows_NTF[:1])
    agreement = measure_agreement(float32, int8, windows_NTF, decide=decide)
    speed = f"{speedup:.2f} times as fast, needs {LEAST_SPEEDUP}"
    failed = [*([speed] if speedup < LEAST_SPEEDUP else []), *agreement.failures]
    return Quantization(
        accepted=not failed,
        reason="; ".join(failed or [speed, *agreement.findings]),
        speedup=speedup,
        max_delta_std=agreement.max_delta,
        mean_delta_std=agreement.mean_delta,
        direction_agreement=None if agreement.mean_delta is None else agreement.same_decisions,
        processor=processor_features(),
    )


def _speedup(float32: Predictor, int8: Predictor, window_1TF: Floats32) -> float:
    """Ratio of median times at batch 1, the two interleaved so that a busy machine slows both."""
    times: dict[str, list[float]] = {"float32": [], "int8": []}
    runs: list[tuple[str, Callable[[Floats32], RawPrediction]]] = [("float32", float32.predict), ("int8", int8.predict)]
    speedup = LEAST_SPEEDUP
    while len(times["int8"]) < MOST_TIMED and 1 / CLEAR < speedup / LEAST_SPEEDUP < CLEAR:
        for _ in range(NUM_TIMED):
            for name, run in runs:
                begun = time.perf_counter()
                run(window_1TF)
                times[name].append(time.perf_counter() - begun)
        speedup = float(np.median(times["float32"][NUM_WARM:]) / np.median(times["int8"][NUM_WARM:]))
    return speedup


@dataclass(frozen=True)
class CalibrationWindows:
    """Windows of the calibration part as the network reads them, with what decides whether a forecast pays its costs.

    Attributes:
        rows_NTF: scaled.
        symbol_N: each window's symbol, as a position in the scaler's symbols, sorted.
        close_N: the last bar's price.
    """

    rows_NTF: Floats32
    symbol_N: Ints
    close_N: Floats

    @classmethod
    def choose(cls, windows: Windows) -> "CalibrationWindows":
        """`NUM_KEPT` of them, spread evenly."""
        ends, names = evenly(windows.parts["calibration"], NUM_KEPT), sorted(windows.symbols)
        places = np.array([names.index(symbol) for symbol in windows.symbols])
        return cls(windows.gather(ends), places[windows.symbol_R[ends]], windows.close_R[ends])

    def save(self, folder: Path) -> None:
        """Writes `calibration.safetensors`."""
        from safetensors.numpy import save_file

        plain = {"rows": self.rows_NTF, "symbol": self.symbol_N, "close": self.close_N}
        save_file({name: np.ascontiguousarray(each) for name, each in plain.items()}, str(folder / CALIBRATION_FILE))

    @classmethod
    def load(cls, folder: Path) -> "CalibrationWindows | None":
        """What a bundle keeps; None of one that was published before bundles kept any."""
        from safetensors.numpy import load_file

        if not (folder / CALIBRATION_FILE).exists():
            return None
        plain = load_file(folder / CALIBRATION_FILE)
        return cls(plain["rows"], plain["symbol"], plain["close"])
