"""The answer of `books.lua` as contracts."""

from collections.abc import Sequence
from typing import Any

from ml_workbench_service.contracts.queue import (
    LATENCY_BOUNDS_MS,
    PREDICTIONS_STREAM,
    GroupBooks,
    LatencyHistogram,
    StreamBooks,
    SymbolBooks,
)

SETTLED = ("acked", "dropped_oldest", "expired", "dead_lettered")
SLOTS = (*map(str, LATENCY_BOUNDS_MS), "inf")


def stream_books(stream: str, answer: Any) -> StreamBooks:
    """Everything, read in one step."""
    length, age_ms, refused, num_dead_letters, groups = answer
    return StreamBooks(
        stream=stream,
        length=length,
        oldest_age_s=None if age_ms < 0 else age_ms / 1000,
        refused_by_symbol=_counts(refused),
        num_dead_letters=num_dead_letters,
        groups=tuple(_group_books(*group) for group in groups),
    )


def summed(books: Sequence[StreamBooks]) -> StreamBooks:
    """Several streams as one: figures added, the oldest age of all."""
    by_group: dict[str, list[GroupBooks]] = {}
    for each in books:
        for group in each.groups:
            by_group.setdefault(group.group, []).append(group)
    ages = [each.oldest_age_s for each in books if each.oldest_age_s is not None]
    refused: dict[str, int] = {}
    for each in books:
        for symbol, count in each.refused_by_symbol.items():
            refused[symbol] = refused.get(symbol, 0) + count
    return StreamBooks(
        stream=PREDICTIONS_STREAM,
        length=sum(each.length for each in books),
        oldest_age_s=max(ages, default=None),
        refused_by_symbol=refused,
        num_dead_letters=sum(each.num_dead_letters for each in books),
        groups=tuple(_summed_group(name, parts) for name, parts in by_group.items()),
    )


def _summed_group(name: str, parts: Sequence[GroupBooks]) -> GroupBooks:
    figures = ("enqueued", "pending", "undelivered", "duplicates", "balance", *SETTLED)
    by_symbol: dict[str, SymbolBooks] = {}
    for part in parts:  # a symbol lives in one shard, but what named none may lie in several
        for symbol, found in part.by_symbol.items():
            before = by_symbol.get(symbol, SymbolBooks())
            by_symbol[symbol] = SymbolBooks(
                **{loss: getattr(before, loss) + getattr(found, loss) for loss in SymbolBooks.model_fields}
            )
    return GroupBooks(
        group=name,
        by_symbol=by_symbol,
        latency=LatencyHistogram(
            counts=tuple(map(sum, zip(*(part.latency.counts for part in parts), strict=True))),
            num=sum(part.latency.num for part in parts),
            sum_ms=sum(part.latency.sum_ms for part in parts),
        ),
        **{figure: sum(getattr(part, figure) for part in parts) for figure in figures},
    )


def _group_books(
    name: bytes,
    pending: int,
    undelivered: int,
    fields: list[bytes],
    symbols: list[bytes],
    latencies: list[bytes],
) -> GroupBooks:
    counters = _counts(fields)
    settled = {key: counters.get(key, 0) for key in SETTLED}
    enqueued = counters.get("enqueued", 0)
    by_symbol: dict[str, dict[str, int]] = {}
    for key, count in _counts(symbols).items():
        counter, _, symbol = key.partition("|")
        by_symbol.setdefault(symbol or "?", {})[counter] = count
    slots = _counts(latencies)
    counts = tuple(slots.get(slot, 0) for slot in SLOTS)
    return GroupBooks(
        group=name.decode(),
        enqueued=enqueued,
        pending=pending,
        undelivered=undelivered,
        duplicates=counters.get("duplicates", 0),
        balance=enqueued - pending - undelivered - sum(settled.values()),
        by_symbol={symbol: SymbolBooks(**found) for symbol, found in sorted(by_symbol.items())},
        latency=LatencyHistogram(counts=counts, num=sum(counts), sum_ms=slots.get("sum_ms", 0)),
        **settled,
    )


def _counts(flat: list[bytes]) -> dict[str, int]:
    return {key.decode("utf-8", "replace"): int(value) for key, value in zip(flat[::2], flat[1::2], strict=True)}
