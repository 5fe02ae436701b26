"""Downsampling: a min-max envelope, so that a figure of 100,000 rows loses no extreme and stays small.

Time is cut into as many buckets of rows as a wide screen has use for; of each the first, least, greatest and last value
stay, in their order. A spike of one row is therefore always drawn.
"""

from collections.abc import Sequence

MOST_POINTS = 2_000
"""Drawn of one line; up to here every row is. At 1,400 px three points share two columns of pixels."""


def bucket_size(num: int, *, per_bucket: int = 4, most: int = MOST_POINTS) -> int:
    """Rows that share a bucket; 1 where all are drawn, since they are no more than `most`."""
    return 1 if num <= most else -(-num * per_bucket // most)


def extremes(values: Sequence[float | None], *, most: int = MOST_POINTS) -> list[int]:
    """Which rows are drawn of one line, ascending: of each bucket first, least, greatest and last.

    A missing value stands for its bucket only where all of it is missing, and leaves a gap there.
    """
    size = bucket_size(len(values), most=most)
    if size == 1:
        return list(range(len(values)))
    kept: list[int] = []
    for begin in range(0, len(values), size):
        bucket = [(value, row) for row, value in enumerate(values[begin : begin + size], begin) if value is not None]
        if not bucket:
            kept.append(begin)
            continue
        kept += sorted({bucket[0][1], min(bucket)[1], max(bucket)[1], bucket[-1][1]})
    return kept


def envelope(
    lower: Sequence[float | None], upper: Sequence[float | None], *, most: int = MOST_POINTS
) -> tuple[list[int], list[float | None], list[float | None]]:
    """A band's rows, with the least lower and the greatest upper end of each bucket; of none, where it has none."""
    size = bucket_size(len(lower), per_bucket=2, most=most)
    starts = list(range(0, len(lower), size))
    return (
        starts,
        [_extreme(lower[begin : begin + size], is_upper=False) for begin in starts],
        [_extreme(upper[begin : begin + size], is_upper=True) for begin in starts],
    )


def _extreme(values: Sequence[float | None], *, is_upper: bool) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return max(known) if is_upper else min(known)
