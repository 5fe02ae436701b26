"""The queue's benchmarks run: in small, so that what they compare and count is checked, whatever the figures are."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lists, publishing, queue_latency, training_speed
from tools import interleaved_rounds as rounds


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results and contestants' logs go here instead of over the last real run's."""
    for module in (rounds, training_speed):
        monkeypatch.setattr(module, "WORKPLACE", tmp_path)
    return tmp_path / "results"


def figures(results: Path, name: str) -> dict[str, Any]:
    """What the benchmark kept."""
    kept: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["figures"]
    return kept


def test_publishing_keeps_the_same_records_whoever_publishes_them(results: Path) -> None:
    publishing.main(num=300, num_rounds=1)
    by_clock = figures(results, "publishing")["per_second"]
    assert set(by_clock) == set(publishing.CONTESTANTS)
    assert all(each > 0 for rates in by_clock.values() for each in rates)


def test_each_record_published_at_a_rate_is_applied_or_counted(results: Path) -> None:
    queue_latency.main(rate_per_s=200.0, duration_s=2.0, num_rounds=1)
    found = figures(results, "queue_latency")
    assert 0 < found["p50_ms"][0] <= found["p99_ms"][0]


@pytest.mark.more
@pytest.mark.timeout(600)
def test_lists_of_copied_models_and_jobs_are_answered(results: Path) -> None:
    sizes = {lists.SMALL: (2, 10), lists.LARGE: (6, 30)}
    lists.main(num_rounds=1, per_turn=1, num_browser_rounds=0, sizes=sizes)
    found = figures(results, "lists")
    assert set(found) == {*lists.WHOLE, *lists.EQUAL}
    assert all(len(each[name]) == 1 for each in found.values() for name in sizes)
