"""Queue accounting: the answer of `accounting.lua` as contracts."""

from collections.abc import Sequence
from typing import Any

from ml_workbench_service.contracts.queue import (
    LATENCY_BOUNDS_MS,
    PREDICTIONS_STREAM,
    GroupAccounting,
    LatencyHistogram,
    StreamAccounting,
    SymbolAccounting,
)

DONE = ("acked", "dropped_oldest", "expired", "dead_lettered")
SLOTS = (*map(str, LATENCY_BOUNDS_MS), "inf")


def stream_accounting(stream: str, answer: Any) -> StreamAccounting:
    """Everything, read in one step."""
    length, age_ms, refused, num_dead_letters, groups = answer
    return StreamAccounting(
        stream=stream,
        length=length,
        oldest_age_s=None if age_ms < 0 else age_ms / 1000,
        refused_by_symbol=_counts(refused),
        num_dead_letters=num_dead_letters,
        groups=tuple(_group_accounting(*group) for group in groups),
    )


def summed(accounting: Sequence[StreamAccounting]) -> StreamAccounting:
    """Several streams as one: figures added, the oldest age of all."""
    by_group: dict[str, list[GroupAccounting]] = {}
    for each in accounting:
        for group in each.groups:
            by_group.setdefault(group.group, []).append(group)
    ages = [each.oldest_age_s for each in accounting if each.oldest_age_s is not None]
    refused: dict[str, int] = {}
    for each in accounting:
        for symbol, count in each.refused_by_symbol.items():
            refused[symbol] = refused.get(symbol, 0) + count
    return StreamAccounting(
        stream=PREDICTIONS_STREAM,
        length=sum(each.length for each in accounting),
        oldest_age_s=max(ages, default=None),
        refused_by_symbol=refused,
        num_dead_letters=sum(each.num_dead_letters for each in accounting),
        groups=tuple(_summed_group(name, parts) for name, parts in by_group.items()),
    )


def _summed_group(name: str, parts: Sequence[GroupAccounting]) -> GroupAccounting:
    figures = ("enqueued", "pending", "undelivered", "duplicates", "balance", *DONE)
    by_symbol: dict[str, SymbolAccounting] = {}
    for part in parts:  # a symbol lives in one shard, but what named none may lie in several
        for symbol, found in part.by_symbol.items():
            before = by_symbol.get(symbol, SymbolAccounting())
            by_symbol[symbol] = SymbolAccounting(
                **{loss: getattr(before, loss) + getattr(found, loss) for loss in SymbolAccounting.model_fields}
            )
    return GroupAccounting(
        group=name,
        by_symbol=by_symbol,
        latency=LatencyHistogram(
            counts=tuple(map(sum, zip(*(part.latency.counts for part in parts), strict=True))),
            num=sum(part.latency.num for part in parts),
            sum_ms=sum(part.latency.sum_ms for part in parts),
        ),
        **{figure: sum(getattr(part, figure) for part in parts) for figure in figures},
    )


def _group_accounting(
    name: bytes,
    pending: int,
    undelivered: int,
    fields: list[bytes],
    symbols: list[bytes],
    latencies: list[bytes],
) -> GroupAccounting:
    counters = _counts(fields)
    done = {key: counters.get(key, 0) for key in DONE}
    enqueued = counters.get("enqueued", 0)
    by_symbol: dict[str, dict[str, int]] = {}
    for key, count in _counts(symbols).items():
        counter, _, symbol = key.partition("|")
        by_symbol.setdefault(symbol or "?", {})[counter] = count
    slots = _counts(latencies)
    counts = tuple(slots.get(slot, 0) for slot in SLOTS)
    return GroupAccounting(
        group=name.decode(),
        enqueued=enqueued,
        pending=pending,
        undelivered=undelivered,
        duplicates=counters.get("duplicates", 0),
        balance=enqueued - pending - undelivered - sum(done.values()),
        by_symbol={symbol: SymbolAccounting(**found) for symbol, found in sorted(by_symbol.items())},
        latency=LatencyHistogram(counts=counts, num=sum(counts), sum_ms=slots.get("sum_ms", 0)),
        **done,
    )


def _counts(flat: list[bytes]) -> dict[str, int]:
    return {key.decode("utf-8", "replace"): int(value) for key, value in zip(flat[::2], flat[1::2], strict=True)}
