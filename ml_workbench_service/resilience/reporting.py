"""Resilience report: a run's evidence gathered, its throughput, latencies and depth over time, and a table for people.

Latencies end where the agent's decision is in the stream, by the server's clock (whole milliseconds), and begin where
the record was *due*, not where it was sent: whoever waits for a slow server is counted (no coordinated omission). A
run in which clocks step has no latencies.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import ValidationError

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.entries import unflatten
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.resilience import (
    DepthSample,
    Percentiles,
    ResilienceReport,
    Throughput,
    Verdict,
)
from ml_workbench_service.resilience.checker import AccountingSample, AgentEnd, Evidence, accounts, check
from ml_workbench_service.resilience.history import ServerHistory
from ml_workbench_service.resilience.rig import Rig
from ml_workbench_service.resilience.synthetic import number_of

MOST_DEPTH_SAMPLES = 200
_BARS = " ▁▂▃▄▅▆▇█"


def gather(rig: Rig) -> Evidence:
    """The evidence of a run whose rig is quiet and not closed yet."""

    def record_of(identifier: str) -> PredictionRecord:
        number = number_of(identifier)
        if number is None or number >= rig.num_records:
            raise KeyError(identifier)
        return rig.records.record(number)

    def is_as_offered(identifier: str, fields: Mapping[bytes, bytes]) -> bool:
        if number_of(identifier) is None:
            return identifier in rig.poison
        try:
            return unflatten(PredictionRecord, fields) == record_of(identifier)
        except (KeyError, ValidationError):
            return False

    agents = [
        AgentEnd(each.agent_id, rig.group_of(each), rig.begun[folder], Checkpoint.load(folder))
        for folder, each in {rig.state_of(each): each for each in rig.agents}.items()
    ]
    return Evidence(
        record_of=record_of,
        symbol_of=rig.records.symbol_of,
        producers=[producer.history() for producer in rig.producers],
        server=ServerHistory.read(rig.redis.folder, [agent.group for agent in agents], is_as_offered=is_as_offered),
        agents=agents,
        poison=frozenset(rig.poison),
        samples=rig.samples,
        last=rig.last,
    )


def report_of(rig: Rig, evidence: Evidence, *, duration_s: float) -> ResilienceReport:
    """The report of a run that is over."""
    verdicts = check(evidence)
    is_timed = rig.clock is None
    latency, in_queue = _latencies(rig, evidence) if is_timed else (None, None)
    notes = tuple(rig.notes) + (() if is_timed else ("no latencies: the clocks stepped",))
    late_ms = np.array([each for producer in evidence.producers for each in producer.late_ms])
    depth = _depth(evidence.samples)
    report = ResilienceReport(
        request=rig.request,
        seed=rig.seed,
        passed=all(verdict.holds for verdict in verdicts),
        verdicts=verdicts,
        num_offered=max((producer.offered_up_to for producer in evidence.producers), default=-1) + 1,
        num_acknowledged=len({number for producer in evidence.producers for number in producer.acked}),
        num_refused=len({number for producer in evidence.producers for number in producer.refused}),
        num_outbox_dropped=sum(producer.outbox_dropped for producer in evidence.producers),
        num_poison=len(evidence.poison),
        accounts=accounts(evidence),
        throughput=_throughput(rig, evidence),
        latency=latency,
        latency_in_queue=in_queue,
        lateness=percentiles(late_ms),
        depth=depth,
        timeline=tuple(rig.timeline),
        notes=notes,
        duration_s=round(duration_s, 3),
        table="",
    )
    return report.model_copy(update={"table": table(report)})


def percentiles(values_ms: Floats) -> Percentiles | None:
    """Of a distribution; None of an empty one."""
    if not len(values_ms):
        return None
    p50, p90, p99, p999 = (round(float(each), 3) for each in np.percentile(values_ms, [50, 90, 99, 99.9]))
    greatest = round(float(values_ms.max()), 3)
    return Percentiles(num=len(values_ms), p50_ms=p50, p90_ms=p90, p99_ms=p99, p999_ms=p999, max_ms=greatest)


def table(report: ResilienceReport) -> str:
    """The report as text."""
    request = report.request
    lines = [
        f"{request.scenario} {request.rate_per_s:g}/s for {request.duration_s:g} s, capacity {request.capacity}, "
        f"faults: {', '.join(request.faults) or 'none'}, seed {report.seed}",
        f"offered {report.num_offered}, acknowledged {report.num_acknowledged}, refused {report.num_refused}, dropped "
        f"by the outbox {report.num_outbox_dropped}, poison {report.num_poison}",
        "",
        *(_verdict_line(verdict) for verdict in report.verdicts),
        "",
    ]
    for each in report.accounts:
        figures = each.model_dump(exclude={"group"})
        lines.append(f"{each.group}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    rates = report.throughput
    lines.append(
        f"per second        offered {rates.offered_per_s:.0f}, taken {rates.taken_per_s:.0f}, "
        f"applied {rates.applied_per_s:.0f}"
    )
    for name, row in (
        ("due to applied", report.latency),
        ("entry to applied", report.latency_in_queue),
        ("offered late by", report.lateness),
    ):
        if row is not None:
            lines.append(
                f"{name:<17} p50 {row.p50_ms:.1f}  p90 {row.p90_ms:.1f}  p99 {row.p99_ms:.1f}  "
                f"p99.9 {row.p999_ms:.1f}  max {row.max_ms:.1f} ms"
            )
    lines.append(f"depth over time   {_sparkline([sample.length for sample in report.depth])}")
    lines += [f"{event.at_s:8.3f} s  {event.fault}: {event.what}" for event in report.timeline]
    return "\n".join([*lines, *report.notes])


def _verdict_line(verdict: Verdict) -> str:
    if verdict.holds:
        return f"{verdict.invariant:<15} holds ({verdict.num_checked} checked)"
    examples = "".join(f"\n    {example}" for example in verdict.counter_examples)
    return f"{verdict.invariant:<15} VIOLATED {verdict.num_violations} times of {verdict.num_checked}{examples}"


def _sparkline(values: Sequence[int]) -> str:
    if not values:
        return "not read"
    step = max(1, len(values) // 60)
    highest = max(values)
    heights = [max(values[start : start + step]) for start in range(0, len(values), step)]
    return "".join(_BARS[-(-each * 8 // highest) if highest else 0] for each in heights) + f" (most {highest})"


def _depth(samples: Sequence[AccountingSample]) -> tuple[DepthSample, ...]:
    step = max(1, -(-len(samples) // MOST_DEPTH_SAMPLES))
    return tuple(
        DepthSample(
            at_s=round(sample.at_s, 3),
            length=sample.length,
            pending=max((accounting.pending for accounting in sample.groups.values()), default=0),
            undelivered=max((accounting.undelivered for accounting in sample.groups.values()), default=0),
        )
        for sample in samples[::step]
    )


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _latencies(rig: Rig, evidence: Evidence) -> tuple[Percentiles | None, Percentiles | None]:
    entered = {entry.prediction_id: _ms(entry.entry_id) for entry in evidence.server.entries}
    since_due, since_entry = [], []
    for decided in evidence.server.decided:
        identifier = decided.decision.prediction_id
        number = number_of(identifier)
        if number is None:
            continue
        at_ms = _ms(decided.entry_id)
        since_due.append(at_ms - (rig.begun_wall + float(rig.due_s[number])) * 1000)
        since_entry.append(float(at_ms - entered[identifier]))
    # The server's stamp is cut to whole milliseconds: less than none would be this cut alone.
    return percentiles(np.maximum(np.array(since_due), 0.0)), percentiles(np.array(since_entry))


def _throughput(rig: Rig, evidence: Evidence) -> Throughput:
    span_s = max(rig.request.duration_s, float(rig.due_s[-1]))
    decided = [_ms(each.entry_id) for each in evidence.server.decided]
    entered = [_ms(each.entry_id) for each in evidence.server.entries]
    num_agents = max(1, len({agent.agent_id for agent in evidence.agents}))
    return Throughput(
        offered_per_s=round(len(rig.due_s) / span_s, 1),
        taken_per_s=_rate(entered),
        applied_per_s=round(_rate(decided) / num_agents, 1),
    )


def _rate(stamps_ms: Sequence[int]) -> float:
    if len(stamps_ms) < 2:
        return 0.0
    return round(len(stamps_ms) / max(0.001, (max(stamps_ms) - min(stamps_ms)) / 1000), 1)
