"""Short real runs under faults, what a fault must declare, the clock, the disk and the schedule."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service.contracts.resilience import ResilienceReport, ResilienceRequest
from ml_workbench_service.resilience.fault import Fault, all_faults, described, fault_named
from ml_workbench_service.resilience.machine import FakeClock, SmallDisk
from ml_workbench_service.resilience.schedule import Burst, due_times
from ml_workbench_service.resilience.synthetic import SyntheticPredictions
from ml_workbench_service.workflows.run_resilience_test import run_resilience_test


class Heard:
    """A report that remembers, and cancels at a message if it is told to."""

    def __init__(self, cancel_at: str | None = None) -> None:
        self.said: list[str] = []
        self.steps: list[int] = []
        self._cancel_at = cancel_at

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        self.steps.append(step)

    def say(self, message: str) -> None:
        self.said.append(message)
        if message == self._cancel_at:
            raise JobCancelled("The job was cancelled.")

    def warn(self, message: str) -> None:
        self.said.append(message)

    def check(self) -> None:
        pass


def run(folder: Path, *faults: str, **changes: object) -> ResilienceReport:
    body = {"rate_per_s": 400, "duration_s": 1.5, "seed": 11, "faults": faults, **changes}
    return run_resilience_test(ResilienceRequest.model_validate(body), folder / "run", Heard())


def test_a_killed_server_and_a_killed_agent_lose_nothing(tmp_path: Path) -> None:
    report = run(tmp_path, "redis_killed", "agent_killed")
    assert report.passed, report.table
    assert {event.fault for event in report.timeline} >= {"redis_killed", "agent_killed"}
    (account,) = report.accounts
    assert account.applied == report.num_acknowledged == report.num_offered == 600
    assert report.latency is not None
    assert report.latency.num == 600
    assert report.depth
    assert "nothing_lost    holds" in report.table


def test_cut_connections_and_poison_leave_exactly_the_poison_dead(tmp_path: Path) -> None:
    report = run(tmp_path, "connection_cut", "poison")
    assert report.passed, report.table
    assert report.num_poison >= 1
    assert report.accounts[0].dead_lettered == report.num_poison
    assert report.accounts[0].applied == 600


def test_a_run_that_is_cancelled_leaves_no_process_behind(tmp_path: Path) -> None:
    request = ResilienceRequest(duration_s=30, rate_per_s=10, faults=("disk_full",))
    with pytest.raises(JobCancelled):
        run_resilience_test(request, tmp_path / "run", Heard(cancel_at="flooding"))
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_every_fault_says_what_it_does() -> None:
    assert {fault.name for fault in described()} == {fault.name for fault in all_faults()}
    assert all(fault.summary.endswith((".", ")")) for fault in described())
    assert len(described()) >= 20


def test_a_fault_without_a_name_or_a_sentence_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match="needs a `name` and a docstring"):
        type("Nameless", (Fault,), {"__doc__": "Breaks something."})
    with pytest.raises(TypeError, match="defined twice"):
        type("Again", (Fault,), {"__doc__": "Breaks something.", "name": "redis_killed"})


def test_an_unknown_fault_is_answered_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(DataValidationError, match=r"redis_frozen, .*did you mean redis_killed\?"):
        fault_named("redis_kiled")


def test_a_faults_random_moments_follow_from_the_seed() -> None:
    request = ResilienceRequest(capacity=10)
    kind = fault_named("burst_beyond_capacity")
    first, again, other = (kind(random.Random(seed)).bursts(request) for seed in (1, 1, 2))
    assert first == again != other


def test_the_clock_of_a_child_steps_and_its_monotonic_one_does_not(tmp_path: Path) -> None:
    clock = FakeClock(tmp_path)
    if not clock.is_real:
        pytest.skip("libfaketime is not installed")
    clock.step(3600)
    code = "import time; print(time.time(), time.monotonic())"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clock.environment
    )
    wall, monotonic = map(float, child.stdout.split())
    assert wall - time.time() == pytest.approx(3600, abs=20)
    assert time.monotonic() - monotonic == pytest.approx(0, abs=20)


def test_a_full_disk_takes_no_byte_and_a_freed_one_does(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", size_bytes=1 << 20)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "disk" / "file")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert writer.stdin is not None
    assert writer.stdout is not None

    def answer() -> str:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        return writer.stdout.readline().strip()

    try:
        assert answer() == "written"
        disk.fill([writer.pid])
        assert answer() == "full"
        disk.free()
        assert answer() == "written"
    finally:
        writer.stdin.close()
        writer.wait(60)
        writer.stdout.close()
        disk.close()


WRITER = """
import sys
for _ in sys.stdin:
    try:
        with open(sys.argv[1], "ab") as file:
            file.write(bytes(20_000))
        print("written", flush=True)
    except OSError:
        print("full", flush=True)
"""


@pytest.mark.parametrize("scenario", ["steady", "burst", "flood"])
def test_a_schedule_rises_keeps_its_rate_and_follows_from_the_seed(scenario: str) -> None:
    first, again = (due_times(scenario, rate_per_s=200, duration_s=3, seed=5) for _ in range(2))  # type: ignore[arg-type]
    assert len(first) == 600
    assert np.array_equal(first, again)
    assert np.all(np.diff(first) >= 0)
    assert 0 <= first[0] <= first[-1] <= 3


def test_a_burst_comes_on_top_at_one_moment() -> None:
    due = due_times("steady", rate_per_s=10, duration_s=1, seed=0, bursts=[Burst(0.55, 7)])
    assert len(due) == 17
    assert np.sum(due == 0.55) == 7


def test_records_follow_from_their_number_and_each_symbols_bars_go_forward() -> None:
    first, again = (SyntheticPredictions(4, num_symbols=3, num_records=300) for _ in range(2))
    records = [first.record(number) for number in range(300)]
    assert records == [again.record(number) for number in range(300)]
    for symbol in {record.symbol for record in records}:
        moments = [record.as_of for record in records if record.symbol == symbol]
        assert moments == sorted(set(moments))
    assert {record.status for record in records} == {"ok", "abstain"}
