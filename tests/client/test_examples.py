"""The notebooks run on real services, cell by cell, and what a cell ends with can be shown."""

import ast
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.service_process import ServiceProcess

pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def cells(notebook: Path) -> Iterator[str]:
    """The code cells, each with as many empty lines before it that an error names the right line."""
    text = notebook.read_text(encoding="utf-8")
    starts = [match.start() for match in re.finditer(r"^# %%", text, flags=re.M)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if not text[start:].startswith("# %% [markdown]"):
            yield "\n" * text[:start].count("\n") + text[start:end]


def run(cell: str, notebook: Path, namespace: dict[str, Any]) -> Any:
    """Runs a cell as a notebook does; the value of its last expression."""
    parsed = ast.parse(cell)
    last = parsed.body.pop() if parsed.body and isinstance(parsed.body[-1], ast.Expr) else None
    exec(compile(parsed, str(notebook), "exec"), namespace)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), str(notebook), "eval"), namespace)


@pytest.fixture(scope="module")
def over_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service over a folder with the hourly bars of the package gym-anytrading."""
    folder = tmp_path_factory.mktemp("own_bars")
    spec = find_spec("gym_anytrading")
    assert spec is not None
    assert spec.origin is not None
    (folder / "bars").mkdir()
    shutil.copy(Path(spec.origin).parent / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv", folder / "bars")
    own = ServiceProcess(folder / "service", FEATURE_STORE_URL=f"file://{folder / 'bars'}", AGENT_AUTOSTART="false")
    yield own.start()
    own.close()


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_shows_something(
    notebook: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = request.getfixturevalue("over_a_folder" if "own_bars" in notebook.name else "service")
    monkeypatch.setenv("WORKBENCH_URL", running.url)
    namespace: dict[str, Any] = {}
    shown = 0
    for cell in cells(notebook):
        value = run(cell, notebook, namespace)
        if value is not None:
            shown += 1
            html = getattr(value, "_repr_html_", lambda value=value: repr(value))()
            assert html, cell
    assert shown >= 4
