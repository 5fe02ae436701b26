"""A policy's training that was killed goes on to the same weights, wherever it was killed and whatever came between."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common_lib.exceptions import JobCancelled
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.testing.synthetic import Recorder
from tests.reinforcement.policies import PROBE, market_of, policy_family


def checkpoint_in(folder: Path) -> Checkpoint:
    """One that is always due: on its clock nothing takes time."""
    return Checkpoint(folder, fingerprint={}, period_s=0, clock=lambda: 0.0)


@pytest.mark.parametrize("name", ["q_learning", "dqn", "ppo"])
def test_killed_in_every_epoch_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    problem = market_of(num=600)
    family = policy_family(name, epochs=4, memory=400)
    whole = Recorder()
    uninterrupted = PROBE.train(family, problem.windows, report=whole)
    per_epoch = whole.num_checks // 4
    num_killed, reported = 0, []
    for _ in range(20):
        report = Recorder(cancel_at_check=per_epoch + max(per_epoch // 2, 1))
        torch.manual_seed(num_killed)  # another process would begin with another state
        np.random.seed(num_killed)
        try:
            resumed = PROBE.train(family, problem.windows, report=report, checkpoint=checkpoint_in(tmp_path))
        except JobCancelled:
            num_killed += 1
            reported += report.steps
            continue
        reported += report.steps
        break
    else:
        pytest.fail("it never came to an end")
    assert num_killed >= 2
    assert [step for step, _, _ in reported] == [1, 2, 3, 4]
    assert [metrics for _, _, metrics in reported] == [metrics for _, _, metrics in whole.steps]
    for key, value in uninterrupted.weights.items():
        assert value.tobytes() == resumed.weights[key].tobytes()
    assert (resumed.epochs_run, resumed.best_epoch) == (uninterrupted.epochs_run, uninterrupted.best_epoch)


def test_a_checkpoint_of_dqn_is_small_though_it_holds_the_replay(tmp_path: Path) -> None:
    family = policy_family("dqn", epochs=2, memory=2000, lookback=8)
    PROBE.train(family, market_of(num=1500).windows, checkpoint=checkpoint_in(tmp_path))
    (file,) = tmp_path.iterdir()
    assert 32 * 1500 < file.stat().st_size < 32 * 2000 + 80_000  # windows would be 200 bytes a decision and more
