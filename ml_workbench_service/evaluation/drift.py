"""`InputReference`: how each input was distributed on the training part, as the network read its last rows.

Kept in `recipe.json`; live inputs are held against it (`market/drift.py`).

Legend: N training windows, M live rows, F features, Q grid points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.outcomes import Drift, FeatureDrift
from ml_workbench_service.market.drift import Reference, drift_of

NUM_GRID = 201
"""Quantiles in steps of half a percent: a distance of distribution functions is known to a quarter of one."""
_WORST_FIRST = ("major", "moderate", "stable", "insufficient_data", "constant")


@dataclass(frozen=True)
class InputReference:
    """Each feature's reference.

    Attributes:
        num_rows: training windows behind it.
    """

    features: tuple[str, ...]
    references: tuple[Reference, ...]
    num_rows: int

    @classmethod
    def fit(cls, last_rows_NF: Floats32, bars_N: Ints, features: Sequence[str]) -> Self:
        """From the training windows' last rows, after the window stage.

        Args:
            bars_N: number of the bar of each; rows of several symbols at one bar count as one.
        """
        in_time = np.argsort(bars_N, kind="stable")
        references = tuple(
            Reference.fit(column_N, bars_N[in_time], num_grid=NUM_GRID)
            for column_N in last_rows_NF[in_time].T.astype(np.float64)
        )
        return cls(tuple(features), references, len(last_rows_NF))

    def drift(self, rows_MF: Floats32, bars_M: Ints) -> Drift:
        """Every feature's drift, worst first; rows in the order of time, with the bar of each."""
        found = [
            drift_of(name, rows_MF[:, column].astype(np.float64), bars_M, reference, num_features=len(self.features))
            for column, (name, reference) in enumerate(zip(self.features, self.references, strict=True))
        ]
        found.sort(key=_badness)
        worst = found[0].feature if found and found[0].psi is not None else None
        return Drift(worst_feature=worst, num_rows=len(rows_MF), features=tuple(found))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`; each value is written as briefly as its float32 allows."""
        return {
            "features": list(self.features),
            "num_rows": self.num_rows,
            "num_effective": [round(each.num_effective, 1) for each in self.references],
            "persistence": [round(each.persistence, 6) for each in self.references],
            "grids": [[float(str(np.float32(value))) for value in each.grid_Q] for each in self.references],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        grids = [np.array(grid, dtype=np.float32).astype(np.float64) for grid in plain["grids"]]
        references = tuple(map(Reference, grids, plain["num_effective"], plain["persistence"]))
        return cls(tuple(plain["features"]), references, int(plain["num_rows"]))


def _badness(drift: FeatureDrift) -> tuple[int, float]:
    return _WORST_FIRST.index(drift.state), -(drift.psi or 0.0)
