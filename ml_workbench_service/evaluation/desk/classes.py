"""Classes: confusion of what was stated with what came, and whether stated probabilities came true.

Legend: N rows with outcome, C classes.
"""

import itertools

import numpy as np

from ml_workbench_service.contracts.desk_report import ClassFigures, ClassReliabilityBin, ClassReport
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.evaluation.desk.rows import DeskRows
from ml_workbench_service.learning.calibration.class_probabilities import class_numbers
from ml_workbench_service.market.significance import wilson

NUM_BINS = 10


def class_report(rows: DeskRows) -> ClassReport | None:
    """Of classifiers; None of everything else, and where no outcome is known."""
    names = [name for name in rows.card.classes if f"p_{name}" in rows.columns]
    if len(names) < 2:
        return None
    said_RC = np.column_stack([rows.columns[f"p_{name}"] for name in names])
    realised_R = rows.columns["realised"]
    known_R = np.isfinite(realised_R) & np.isfinite(said_RC).all(axis=1)
    if not known_R.any():
        return None
    said_NC, as_of_N = said_RC[known_R], rows.as_of_N[known_R]
    is_NC = realised_R[known_R][:, None] == class_numbers(names)
    came_N, stated_N = is_NC.argmax(axis=1), said_NC.argmax(axis=1)
    confusion_CC = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion_CC, (came_N, stated_N), 1)
    share_C = is_NC.mean(axis=0)
    curves = [
        _reliability(said_NC[:, code], is_NC[:, code].astype(np.float64), as_of_N, rows.horizon)
        for code in range(len(names))
    ]
    gaps = [(each.num_rows, abs(each.came - each.stated)) for curve in curves for each in curve]
    return ClassReport(
        classes=tuple(
            ClassFigures(
                name=name,
                share=float(share_C[code]),
                precision=_ratio(confusion_CC[code, code], confusion_CC[:, code].sum()),
                recall=_ratio(confusion_CC[code, code], confusion_CC[code].sum()),
                reliability=curves[code],
            )
            for code, name in enumerate(names)
        ),
        confusion=tuple(tuple(row) for row in confusion_CC.tolist()),
        accuracy=float(np.mean(came_N == stated_N)),
        most_frequent=float(share_C.max()),
        brier=float(((said_NC - is_NC) ** 2).sum(axis=1).mean()),
        brier_of_frequencies=float(((share_C - is_NC) ** 2).sum(axis=1).mean()),
        reliability_error=sum(num * gap for num, gap in gaps) / sum(num for num, _ in gaps),
    )


def _reliability(said_N: Floats, came_N: Floats, as_of_N: Ints, horizon: int) -> tuple[ClassReliabilityBin, ...]:
    """Bins with about equally many rows; equal probabilities are never parted."""
    borders = np.unique(np.quantile(said_N, np.linspace(0, 1, NUM_BINS + 1)))
    found = []
    for place, (low, high) in enumerate(itertools.pairwise(borders) if len(borders) > 1 else [(borders[0],) * 2]):
        is_last = place >= len(borders) - 2
        kept = np.flatnonzero((said_N >= low) & ((said_N <= high) if is_last else (said_N < high)))
        if not len(kept):
            continue
        share = float(came_N[kept].mean())
        least, most = wilson(share, len(np.unique(as_of_N[kept])) / horizon)
        found.append(
            ClassReliabilityBin(stated=float(said_N[kept].mean()), came=share, low=least, high=most, num_rows=len(kept))
        )
    return tuple(found)


def _ratio(num: int, total: int) -> float | None:
    return float(num) / float(total) if total else None
