"""Means over rows with HAC errors: each moment's influence on the mean, so that differences have an error as well.

Symbols at one moment are one observation, and labels that overlap are not independent (`market/significance.py`).

Legend: N rows, T moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.desk_report import Estimate
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.market.significance import mean_error


@dataclass(frozen=True)
class MomentMean:
    """A mean over rows as a sum of moments' influences on it, so that differences of two have an error as well.

    Attributes:
        influence_T: (T,) of every moment of the test part, with mean zero.
    """

    value: float
    influence_T: Floats
    num_rows: int

    @classmethod
    def of(cls, values_N: Floats, kept_N: Bools, place_N: Ints, num_moments: int) -> "MomentMean | None":
        """Of the rows kept; None without one.

        Args:
            place_N: each row's place among the moments.
        """
        num = int(kept_N.sum())
        if not num:
            return None
        value = float(values_N[kept_N].mean())
        sums_T = np.bincount(place_N[kept_N], weights=values_N[kept_N] - value, minlength=num_moments)
        return cls(value, np.asarray(sums_T * num_moments / num), num)

    def less(self, other: "MomentMean") -> "MomentMean":
        """The difference of two means over the same moments."""
        rows = self.num_rows + other.num_rows
        return MomentMean(self.value - other.value, self.influence_T - other.influence_T, rows)

    def estimate(self, *, horizon: int, two_sided: bool = False) -> Estimate:
        """With the HAC error; moments in which no row is kept at either end are no observations."""
        used = np.flatnonzero(self.influence_T)
        spanned_T = self.influence_T[used[0] : used[-1] + 1] if len(used) else self.influence_T[:0]
        found = mean_error(spanned_T * len(spanned_T) / len(self.influence_T), horizon=horizon) if len(used) else None
        if found is None:
            return Estimate(value=self.value, error=None, p_value=None, num_rows=self.num_rows)
        from scipy.special import stdtr  # the API process, which reads contracts alone, does without scipy

        p_value = float(stdtr(found.freedom, -self.value / found.error))
        if two_sided:
            p_value = 2 * min(p_value, 1 - p_value)
        return Estimate(value=self.value, error=found.error, p_value=p_value, num_rows=self.num_rows)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p-value after all of them (Holm, Scandinavian Journal of Statistics 6, 1979); None stays None."""
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    found: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p_value, place) in enumerate(known):
        least = max(least, min((len(known) - rank) * p_value, 1.0))
        found[place] = least
    return found
