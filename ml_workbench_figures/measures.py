"""Measures: the few statistics that figures need, in plain Python, since no figure may load a library.

Each is the standard one: Wilson's interval of a share, Spearman's correlation of ranks, quantiles by rank.
"""

import itertools
import math
from collections.abc import Sequence

NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""

CLASS_NUMBERS = {"sell": -1, "hold": 0, "buy": 1, "lower": -1, "neither": 0, "upper": 1}
"""What predictions and outcomes call the classes of a move; every other class is called by its place."""


def class_places(classes: Sequence[str]) -> dict[int, int]:
    """Each class's place by its number."""
    return {CLASS_NUMBERS.get(name, place): place for place, name in enumerate(classes)}


def wilson(num_hits: float, num: float, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % unless said otherwise; the whole range of nothing."""
    if num <= 0:
        return 0.0, 1.0
    share, weight = num_hits / num, z * z / num
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / num + weight / (4 * num)) / (1 + weight)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; rows count as independent."""
    num = len(values)
    mean = math.fsum(values) / num
    if num < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1) / num)


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 0 on; equal ones share their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end + 1 < len(order) and values[order[end + 1]] == values[order[begin]]:
            end += 1
        for place in range(begin, end + 1):
            found[order[place]] = (begin + end) / 2
        begin = end + 1
    return found


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None where either does not vary."""
    return _correlation(ranks(one), ranks(other))


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    mean_one, mean_other = math.fsum(one) / len(one), math.fsum(other) / len(other)
    product = math.fsum((a - mean_one) * (b - mean_other) for a, b in zip(one, other, strict=True))
    size = math.fsum((a - mean_one) ** 2 for a in one) * math.fsum((b - mean_other) ** 2 for b in other)
    return product / math.sqrt(size) if size > 0 else None


def groups_by_rank(values: Sequence[float], num_groups: int) -> list[list[int]]:
    """Rows in so many groups of nearly equal size, by ascending value; ties in their order of time."""
    order = sorted(range(len(values)), key=values.__getitem__)
    borders = [round(len(order) * number / num_groups) for number in range(num_groups + 1)]
    return [order[begin:end] for begin, end in itertools.pairwise(borders)]


def running_sum(values: Sequence[float]) -> list[float]:
    """Sum up to and including each value."""
    found, total = [], 0.0
    for value in values:
        total += value
        found.append(total)
    return found


def drawdowns(equity: Sequence[float]) -> list[float]:
    """Distance below the highest point so far, the start at 0 included; never above 0."""
    found, peak = [], 0.0
    for value in equity:
        peak = max(peak, value)
        found.append(value - peak)
    return found
