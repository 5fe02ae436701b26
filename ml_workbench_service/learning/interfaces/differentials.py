"""Loss differentials: a model's and a baseline's mean losses by moment, and the test that suits the two.

    nested      the baseline is the model without what it learnt (no change, drift, frequencies): Clark and West's gain
    otherwise   the difference of losses (Diebold and Mariano). Clark and West's test encompassing there: it calls the
                mean of two baselines skill, since that knows something that neither does
    volatility  QLIKE instead of squared errors (Patton, Journal of Econometrics 160, 2011)
    policies    the difference of net log returns

A test that finds nothing says little by itself: `Comparison.expected_gain` is what the test's mean would be had the
model an effect worth finding, and `gain_error` the HAC standard error of the observed gains, so that heavy tails and
storms count. A model that hardly moves from the baseline gains next to nothing with next to no error, which would make
any effect look excluded; its gains are first stretched to the effect's own distance.

Legend: N rows of all symbols, T moments, C classes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ml_workbench_service.contracts.evaluation import Comparison, Effect, Loss
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.significance import (
    clark_west_gains,
    hac_mean,
    mean_by_moment,
    mean_error,
    power_at,
    qlike,
)

EFFECTS: dict[Loss, tuple[Effect, float]] = {
    "squared_error": ("r2", 0.005),
    "brier": ("r2", 0.005),
    "log_loss": ("r2", 0.005),
    "qlike": ("loss_share", 0.02),
    "net_return": ("sharpe", 1.5),
}
"""finance.md, what must not be missed. R² 0.5 %: a monthly R² of half a percent already raises an investor's return
visibly (Campbell and Thompson, Review of Financial Studies 21, 2008)."""
LEAST_FORECAST = 0.05
"""Of the label's typical size, the least that a volatility's forecast counts as: nothing is certain to stand still."""
LEAST_OUTCOME = 0.01
QLIKE_NOISE = 0.7
"""QLIKE loss of a right forecast ÷ the squared coefficient of variation of the outcome: 0.72 of one bar's |return|,
0.5 of many bars' realised volatility."""
YEAR_MS = 365.25 * 86_400_000


@dataclass(frozen=True)
class Differentials:
    """The model and one baseline at each moment, ready to be tested, or pooled with a later part's first.

    Attributes:
        horizon: bars that one label spans.
        moments_T: ms, ascending.
        model_T: losses; of `net_return` what was earned.
        gain_T: what the test averages: above zero speaks for the model.
        distance_T: between the two answers, in the unit of the loss.
        is_nested: whether the baseline is the model without what it learnt.
    """

    baseline: str
    loss: Loss
    horizon: int
    moments_T: Ints
    model_T: Floats
    baseline_T: Floats
    gain_T: Floats
    distance_T: Floats
    is_nested: bool = False

    @classmethod
    def of_squares(
        cls,
        name: str,
        outcomes: Floats,
        *,
        model: Floats,
        baseline: Floats,
        moments_N: Ints,
        horizon: int,
        is_nested: bool,
    ) -> Self:
        """Of numbers (N,), or of probabilities (N, C) and one-hot outcomes, whose squared error is the Brier score."""
        loss: Loss = "squared_error" if outcomes.ndim == 1 else "brier"
        pairs = ((outcomes, model), (outcomes, baseline), (model, baseline))
        model_T, baseline_T, distance_T = (
            mean_by_moment(((one - other) ** 2).reshape(len(outcomes), -1).sum(axis=1), moments_N)
            for one, other in pairs
        )
        gain_T = baseline_T - model_T
        if is_nested:
            gain_T = mean_by_moment(clark_west_gains(outcomes, baseline=baseline, model=model), moments_N)
        return cls(name, loss, horizon, np.unique(moments_N), model_T, baseline_T, gain_T, distance_T, is_nested)

    @classmethod
    def of_volatilities(
        cls, name: str, outcomes: Floats, *, model: Floats, baseline: Floats, moments_N: Ints, horizon: int
    ) -> Self:
        """Of positive numbers (N,), in units of their typical size."""
        model, baseline = (np.maximum(each, LEAST_FORECAST) for each in (model, baseline))
        losses = [qlike(outcomes, each, floor=LEAST_OUTCOME) for each in (model, baseline)]
        model_T, baseline_T, distance_T = (
            mean_by_moment(each, moments_N) for each in (*losses, 0.5 * np.log(model / baseline) ** 2)
        )
        moments_T = np.unique(moments_N)
        return cls(name, "qlike", horizon, moments_T, model_T, baseline_T, baseline_T - model_T, distance_T)

    @classmethod
    def of_returns(cls, name: str, model_T: Floats, baseline_T: Floats, *, moments_T: Ints) -> Self:
        """Of two accounts' net log returns at the same moments."""
        distance_T = np.abs(model_T - baseline_T)
        return cls(name, "net_return", 1, moments_T, model_T, baseline_T, model_T - baseline_T, distance_T)

    def then(self, later: Self) -> Self:
        """Both, one after the other in time."""
        assert (self.baseline, self.loss) == (later.baseline, later.loss), "only the same comparison is pooled"
        return self._with_arrays(
            [np.concatenate([one, other]) for one, other in zip(self._arrays(), later._arrays(), strict=True)]
        )

    def after(self, moment_ms: int) -> Self:
        """What came later."""
        first = int(np.searchsorted(self.moments_T, moment_ms, side="right"))
        return self.between(first, len(self.moments_T))

    def between(self, first: int, last: int) -> Self:
        """The moments of these numbers, the last one left out."""
        return self._with_arrays([each[first:last] for each in self._arrays()])

    def _arrays(self) -> list[np.ndarray]:
        return [self.moments_T, self.model_T, self.baseline_T, self.gain_T, self.distance_T]

    def _with_arrays(self, arrays: Sequence[np.ndarray]) -> Self:
        moments_T, model_T, baseline_T, gain_T, distance_T = arrays
        return replace(
            self, moments_T=moments_T, model_T=model_T, baseline_T=baseline_T, gain_T=gain_T, distance_T=distance_T
        )

    def comparison(self) -> Comparison:
        """With its tests, and what they could have found."""
        model, baseline = float(np.mean(self.model_T)), float(np.mean(self.baseline_T))
        earns = self.loss == "net_return"
        better_T = self.model_T - self.baseline_T if earns else self.baseline_T - self.model_T
        expected, stretched_T = self._at_effect()
        error = mean_error(stretched_T, horizon=self.horizon)
        kind, effect = EFFECTS[self.loss]
        return Comparison(
            baseline=self.baseline,
            loss=self.loss,
            model_loss=model,
            baseline_loss=baseline,
            skill=model - baseline if earns else relative_skill(model, baseline),
            diebold_mariano=hac_mean(better_T, horizon=self.horizon),
            clark_west=hac_mean(self.gain_T, horizon=self.horizon) if self.is_nested else None,
            effect_kind=kind,
            effect=effect,
            expected_gain=expected,
            gain_error=None if error is None else error.error,
            moments_per_year=moments_per_year(self.moments_T),
        )

    def _at_effect(self) -> tuple[float | None, Floats]:
        """The test's mean had the model the effect, and the gains whose error that mean would have.

        For squared errors b + k (m - b), with k chosen so that the mean squared distance is the effect's share of the
        baseline's loss, is what a model with this direction and that effect would say. Clark and West's statistic does
        not depend on k; there the expectation is brought to the observed distance instead.
        """
        loss, distance = float(np.mean(self.baseline_T)), float(np.mean(self.distance_T))
        size = EFFECTS[self.loss][1]
        if self.loss == "net_return":
            deviation, per_year = float(np.std(self.model_T)), moments_per_year(self.moments_T)
            return (size * deviation / math.sqrt(per_year) if per_year else None), self.gain_T
        if not (distance > 0 and loss > 0):
            return None, self.gain_T
        if self.is_nested:
            return 2.0 * math.sqrt(size * loss * distance), self.gain_T
        stretch = max(1.0, math.sqrt(size * loss / distance))
        if self.loss == "qlike":
            return size * loss, stretch * self.gain_T
        cross_T = self.baseline_T - self.model_T + self.distance_T
        return size * loss, stretch * cross_T - stretch**2 * self.distance_T


def pack(differentials: Sequence[Differentials]) -> bytes:
    """All that were made of the same rows, as bytes: losses to six digits, the model's once."""
    first = differentials[0]
    about = {
        "horizon": first.horizon,
        "loss": first.loss,
        "num_moments": len(first.moments_T),
        "baselines": [[each.baseline, each.is_nested] for each in differentials],
    }
    arrays = [first.moments_T.astype("<i8"), first.model_T.astype("<f4")]
    for each in differentials:
        assert np.array_equal(each.moments_T, first.moments_T), "all are made of the same rows"
        arrays += [each.baseline_T.astype("<f4"), each.distance_T.astype("<f4")]
    return b"".join([json.dumps(about).encode(), b"\n", *(each.tobytes() for each in arrays)])


def unpack(packed: bytes) -> list[Differentials]:
    """The inverse of `pack`."""
    head, _, body = packed.partition(b"\n")
    about = json.loads(head)
    num = int(about["num_moments"])
    moments_T = np.frombuffer(body, "<i8", num)
    rows = np.frombuffer(body, "<f4", offset=8 * num).astype(np.float64).reshape(-1, num)
    found = []
    loss, horizon, model_T = about["loss"], int(about["horizon"]), rows[0]
    for place, (name, is_nested) in enumerate(about["baselines"]):
        baseline_T, distance_T = rows[1 + 2 * place], rows[2 + 2 * place]
        gain_T = model_T - baseline_T if loss == "net_return" else baseline_T - model_T
        if is_nested:
            gain_T = gain_T + distance_T
        found.append(
            Differentials(
                name,
                loss,
                horizon,
                moments_T,
                model_T,
                baseline_T,
                gain_T,
                distance_T,
                is_nested,
            )
        )
    return found


def power_before(
    loss: Loss, *, num_moments: float, horizon: int, years: float, alpha: float, is_nested: bool = True
) -> float:
    """The power of a test that is still to come, before anything is seen: of independent and normal outcomes.

    Against a baseline that is not nested a gain of R² r has the deviation of 2 root of r, half as far away from zero.
    A volatility's gain of a share g of its QLIKE loss L has the deviation root of 2 g L times the outcome's own, whose
    square is L ÷ `QLIKE_NOISE`.
    """
    num, size = num_moments / horizon, EFFECTS[loss][1]
    if num <= 0:
        return 0.0
    if loss == "net_return":
        return power_at(size * math.sqrt(years), alpha=alpha)
    if loss == "qlike":
        return power_at(math.sqrt(num * size * QLIKE_NOISE / 2), alpha=alpha)
    return power_at(math.sqrt(num * size / (1 - size)) * (1.0 if is_nested else 0.5), alpha=alpha)


def pooled(parts: Sequence[Sequence[Differentials]]) -> list[Differentials]:
    """One with each baseline over all the parts, which follow one another in time."""
    together = list(parts[0]) if parts else []
    for later in parts[1:]:
        together = [each.then(other) for each, other in zip(together, later, strict=True)]
    return together


def relative_skill(model: float | None, baseline: float | None) -> float | None:
    """1 - loss ÷ the baseline's; None where the baseline never erred."""
    return None if model is None or not baseline else 1.0 - model / baseline


def moments_per_year(moments_T: Ints) -> float | None:
    """By their own span; None of fewer than two, and where they are no times."""
    span_ms = float(moments_T[-1] - moments_T[0]) if len(moments_T) > 1 else 0.0
    return (len(moments_T) - 1) * YEAR_MS / span_ms if span_ms > 0 else None
