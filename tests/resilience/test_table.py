"""`make chaos`: rows, seeds, and a table that counts violations and finds its place in the document."""

import pytest

from chaos.__main__ import DOCUMENT, main
from chaos.cells import CELLS, Cell, cells_named
from chaos.tables import BEGIN, INVARIANTS, markdown
from ml_workbench_service.contracts.resilience import ResilienceReport, ResilienceRequest, Throughput, Verdict
from ml_workbench_service.resilience import faults as faults
from ml_workbench_service.resilience.fault import all_faults
from tools.documents import END, in_place


def report(*violated: str, num_lost: int = 1) -> ResilienceReport:
    verdicts = tuple(
        Verdict(invariant=name, holds=name not in violated, num_checked=9, num_violations=num_lost * (name in violated))
        for name in INVARIANTS
    )
    return ResilienceReport(
        request=ResilienceRequest(), seed=1, passed=not violated, verdicts=verdicts, num_offered=5, num_acknowledged=5,
        num_outbox_dropped=0, num_poison=0, accounts=(), latency=None, latency_in_queue=None, lateness=None, depth=(),
        throughput=Throughput(offered_per_s=1, taken_per_s=1, applied_per_s=1), timeline=(), duration_s=1, table="",
    )  # fmt: skip


def test_every_fault_has_a_row_of_its_own() -> None:
    alone = {cell.faults[0] for cell in CELLS if len(cell.faults) == 1}
    assert {fault.name for fault in all_faults()} <= alone
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_every_row_makes_a_valid_request_with_the_seed_that_is_printed() -> None:
    for cell in CELLS:
        first, again = cell.seeds(7, 20), cell.seeds(7, 20)
        assert first == again
        assert len(set(first)) == 20
        assert cell.request(first[0]).seed == first[0]


def test_rows_are_chosen_by_name() -> None:
    assert [cell.name for cell in cells_named("redis_killed;agent_killed")] == ["redis_killed", "agent_killed"]
    assert cells_named(None) == CELLS
    assert main(["--only", "nothing"]) == 2


def test_a_row_counts_the_runs_that_violated_and_says_which_were_not_made() -> None:
    cell = Cell("redis_killed", ("redis_killed",))
    (row,) = markdown([cell], {"redis_killed": [report(), report("order"), None]}).splitlines()[2:]
    assert row.startswith("| redis_killed (1 not run) | 0/2 | 0/2 | **1/2** | 0/2 |")


def test_what_is_measured_and_not_promised_counts_lost_records() -> None:
    cell = Cell("everysec", (), is_promised=False)
    text = markdown([cell], {"everysec": [report(), report("nothing_lost", num_lost=3)]})
    assert "3 of 10 acknowledged records were lost, in 1 of 2 runs; at most 3 in one" in text


def test_the_table_finds_its_place_in_the_document() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert in_place(document, BEGIN, "new") == f"before\n{BEGIN}\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="no place"):
        in_place("before", BEGIN, "new")
    assert BEGIN in DOCUMENT.read_text(encoding="utf-8")
