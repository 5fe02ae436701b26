"""Kill sweep, short: some points of every step; `python -m chaos.kill_sweep` tries all."""

from pathlib import Path

import pytest

from chaos.kill_sweep.killing import Acknowledge, Point, run
from chaos.kill_sweep.signing import SIGNING
from chaos.kill_sweep.steps import STEPS, Step
from chaos.kill_sweep.sweep import sweep

POINTS = 3
WITHOUT_MLFLOW = {**STEPS, **SIGNING}


@pytest.mark.parametrize("name", list(WITHOUT_MLFLOW))
def test_a_kill_at_any_step_leaves_it_whole(name: str) -> None:
    swept = sweep(name, WITHOUT_MLFLOW[name], repetitions=1, most_points=POINTS)
    print(swept.line())  # noqa: T201
    assert not swept.violations
    assert swept.num_kills > 0


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own query
@pytest.mark.more
def test_a_kill_while_mlflow_is_told_is_made_good() -> None:
    from chaos.kill_sweep.__main__ import steps

    swept = sweep("tracker", steps()["tracker"], repetitions=1, most_points=12)
    print(swept.line())  # noqa: T201
    assert not swept.violations


def _careless(folder: Path, acknowledge: Acknowledge) -> None:
    (folder / "first").write_text("1")
    (folder / "second").write_text("1")
    acknowledge("both")


def _both_or_none(folder: Path, acknowledged: list[str]) -> list[str]:
    found = {each.name for each in folder.iterdir()}
    return [] if found in (set(), {"first", "second"}) else [f"only {found}"]


def test_a_step_that_can_be_torn_is_found() -> None:
    here = str(Path(__file__).relative_to(Path(__file__).parents[2]))
    careless = Step(lambda folder: folder.mkdir(exist_ok=True), _careless, _both_or_none, (here,))
    assert sweep("careless", careless, repetitions=1, told=lambda _: None).violations


def test_a_write_is_torn_at_its_byte(tmp_path: Path) -> None:
    file = tmp_path / "file"
    ended = run(lambda _: _write(file), modules=(), at=Point("bytes", 1000))
    assert (ended.was_killed, file.stat().st_size) == (True, 1000)


def _write(file: Path) -> None:
    with file.open("wb", buffering=0) as opened:
        left = b"x" * 5000
        while left:
            left = left[opened.write(left) :]
