"""A forest that was killed goes on: its read trees answer as they did, and foreign ones are left alone."""

from pathlib import Path

import numpy as np
import pytest
import sklearn

from common_lib.exceptions import JobCancelled
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.networks.isolation_forest import grow_forest
from ml_workbench_service.testing.synthetic import Recorder

DERIVED_ND = np.random.default_rng(0).standard_normal((700, 6)).astype(np.float32)


def grow(folder: Path, *, report: Recorder | None = None, num_trees: int = 45) -> tuple[Recorder, np.ndarray]:
    report = report or Recorder()
    checkpoint = Checkpoint(folder, fingerprint={}, period_s=0, clock=lambda: 0.0)
    forest = grow_forest(DERIVED_ND, num_trees=num_trees, max_samples=128, seed=3, report=report, checkpoint=checkpoint)
    return report, forest.score_samples(DERIVED_ND)


def kill(folder: Path) -> None:
    with pytest.raises(JobCancelled):
        grow(folder, report=Recorder(cancel_at_check=4))


def test_a_killed_forest_grows_only_what_is_missing_and_scores_the_same(tmp_path: Path) -> None:
    _, whole = grow(tmp_path / "whole")
    kill(tmp_path / "killed")
    report, resumed = grow(tmp_path / "killed")
    assert report.messages == ["going on after tree 30"]
    assert [step for step, _, _ in report.steps] == [40, 45]
    assert resumed.tobytes() == whole.tobytes()


def test_trees_of_another_scikit_learn_are_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(tmp_path)
    monkeypatch.setattr(sklearn, "__version__", "0.1")
    report, _ = grow(tmp_path)
    assert [step for step, _, _ in report.steps] == [10, 20, 30, 40, 45]


def test_steps_report_how_many_cuts_set_a_window_apart(tmp_path: Path) -> None:
    """About 2 (ln(n - 1) + 0.577) - 2 (n - 1) / n for n windows a tree (Liu et al., equation 1), less what the bound
    on the depth cuts off."""
    report, _ = grow(tmp_path)
    unbounded = 2 * (np.log(127) + 0.5772) - 2 * 127 / 128
    for _, _, metrics in report.steps:
        assert 0.6 * unbounded < metrics["mean_path"] < unbounded
