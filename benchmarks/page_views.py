"""The page beside `mlflow ui`, in one browser: from the address to what was asked for; and what the page weighs.

    python -m benchmarks.page_views

    first view     ours: the overview with its figures · MLflow: the experiment's page with its runs
    one model      ours: a version whose test part has 10,000 rows, up to its verdict · MLflow: a run's page, up to its
                   metrics. Shown beside them: ours up to the equity curve of all these rows

Both stores have as many trainings. The two take turns, each page loaded anew by a browser that keeps what it may. The
page's process is weighed after every view was looked at; the API's start and memory before its first use with and
without a page, in turns.
"""

import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lists import page_of
from benchmarks.live_records import PAIRS
from benchmarks.many_models import Places, multiply_trained
from benchmarks.running_service import started
from benchmarks.startup import SETTLED_S, free_port, ready_after, resident_mib, service
from tests.runtime.child_processes import children_running
from tools.interleaved_rounds import ROOT, Goal, Rounds, conclude, show

NUM_TRAININGS = 20
FEWEST_ROWS = 10_000
TRAIN: dict[str, Any] = {
    "name": "Many rows",
    "model_id": "many_rows",
    "model_type": "time_series",
    "family": "linear",
    "features": ["return_1", "rsi_14"],
    "target": "price_change_1h",
    "symbols": list(PAIRS[:10]),
    "start_date": "2023-01-01T00:00:00Z",
    "end_date": "2025-03-01T00:00:00Z",
    "hyperparameters": {"epochs": 2, "batch_size": 512},
}
VIEWS = ("/", "/models", "/models/many_rows", "/train", "/jobs", "/experiments", "/live", "/agents", "/deployments")
OURS, MLFLOW = "ours", "mlflow ui"
PAGE_GOAL_MIB = 120.0
WAIT_MS = 120_000
READY_S = 300.0


@contextmanager
def mlflow_ui(folder: Path) -> Iterator[tuple[str, str]]:
    """Its experiment's address and that of a run."""
    folder.mkdir(parents=True)
    store, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/contestants/mlflow_runs.py"), store, artifacts, str(NUM_TRAININGS)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    experiment, run_id, _ = made.stdout.split()[-3:]
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        store,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (folder / "log").open("wb") as log:
        process = psutil.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for(port)
        address = f"http://127.0.0.1:{port}/#/experiments/{experiment}"
        yield f"{address}/runs", f"{address}/runs/{run_id}"  # the experiment's own address may lead to another tab
    finally:
        for each in [*process.children(recursive=True), process]:
            each.terminate()
        psutil.wait_procs([process], timeout=20)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise SystemExit("mlflow ui did not come up")


def in_a_browser(page_url: str, experiment: str, run: str, *, num_rounds: int) -> dict[str, Rounds]:
    """Milliseconds by what is looked at."""
    from playwright.sync_api import Page, sync_playwright

    from tests.figures.browser import chromium

    figures = {name: Rounds(bigger_is_better=False) for name in ("first view", "one model", "its equity curve")}

    def look(page: Page, address: str, what: str) -> float:
        page.goto("about:blank")
        begun = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.locator(what).first.wait_for(timeout=WAIT_MS)
        return (time.perf_counter() - begun) * 1000

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        pages = {
            name: browser.new_context(viewport={"width": 1400, "height": 900}).new_page() for name in (OURS, MLFLOW)
        }
        for number in range(num_rounds + 1):
            for name in (OURS, MLFLOW)[:: 1 if number % 2 else -1]:
                page = pages[name]
                first = (f"{page_url}/", ".headlines") if name == OURS else (experiment, "text=copy-0")
                one = (f"{page_url}/models/many_rows", "#verdict") if name == OURS else (run, "text=validation_loss")
                taken = {"first view": look(page, *first), "one model": look(page, *one)}
                if name == OURS:
                    begun = time.perf_counter()
                    page.get_by_role("tab", name="Figures").click()
                    page.locator("#equity .main-svg").first.wait_for(timeout=WAIT_MS)
                    taken["its equity curve"] = taken["one model"] + (time.perf_counter() - begun) * 1000
                for what, milliseconds in taken.items() if number else ():
                    figures[what].add(name, milliseconds)
        for view in VIEWS:
            pages[OURS].goto(f"{page_url}{view}", wait_until="networkidle")
        browser.close()
    return figures


def starts(num_rounds: int) -> dict[str, Rounds]:
    """The API's start in seconds and its memory before the first use, with a page and without."""
    found = {name: Rounds(bigger_is_better=False) for name in ("ready after, s", "resident, MiB")}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_rounds + 1):
            for page in ("true", "false")[:: 1 if number % 2 else -1]:
                more = {"PAGE": page, "PAGE_PORT": str(free_port()), "AGENT_AUTOSTART": "false"}
                with service(errors=Path(folder) / "errors.log", **more) as (process, address, begun):
                    taken = ready_after(process, address, begun)
                    time.sleep(SETTLED_S)
                    if number:
                        found["ready after, s"].add(f"PAGE={page}", taken)
                        found["resident, MiB"].add(f"PAGE={page}", resident_mib(process.pid))
    return found


def page_mib(service_pid: int) -> float:
    """The page's process, of this service."""
    for child in children_running("ml_workbench_client.page", of=service_pid):
        return resident_mib(child.pid)
    raise SystemExit("the service has no page process")


def main(*, num_rounds: int = 7, num_starts: int = 5) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        places = Places(folder / "ours")
        with started(places.folder, AGENT_AUTOSTART="false", PAGE="false", **places.variables) as trained:
            trained.train(TRAIN)
            num_rows = trained.call("GET", "/api/v1/models/many_rows")["split"]["num_windows"]["test"]
        if num_rows < FEWEST_ROWS:
            raise SystemExit(f"the test part has {num_rows} rows, fewer than {FEWEST_ROWS}")
        multiply_trained(places, "many_rows", num=NUM_TRAININGS - 1)
        more = {"PAGE": "true", "PAGE_PORT": str(free_port()), "AGENT_AUTOSTART": "false"}
        with started(places.folder, **more, **places.variables) as ours, mlflow_ui(folder / "mlflow") as theirs:
            figures = in_a_browser(page_of(ours), *theirs, num_rounds=num_rounds)
            (own,) = children_running("ml_workbench_service.main")
            weight = page_mib(own.pid)
    started_up = starts(num_starts)
    ratios = {name: 1 / figures[name].times_better(OURS, MLFLOW) for name in ("first view", "one model")}
    rows = [
        [name, f"{each.median(OURS):.0f}", f"{each.median(MLFLOW):.0f}" if MLFLOW in each.figures else "",
         f"{ratios[name]:.2f}" if name in ratios else ""]
        for name, each in figures.items()
    ]  # fmt: skip
    show(f"from the address to what was asked for, ms ({num_rows:,} test rows)", ["", OURS, MLFLOW, "times"], rows)
    rows = [
        [name, *(f"{each.median(f'PAGE={page}'):.2f}" for page in ("true", "false"))]
        for name, each in started_up.items()
    ]
    show("the API before its first use", ["", "PAGE=true", "PAGE=false"], rows)
    with_page = {name: 1 / each.times_better("PAGE=true", "PAGE=false") for name, each in started_up.items()}
    goals = [
        *(Goal(f"{name}, times MLflow's", ratio, 1.0, at_most=True) for name, ratio in ratios.items()),
        Goal("page process after every view, MiB", weight, PAGE_GOAL_MIB, at_most=True),
        *(Goal(f"{name} with a page, times without", ratio, 1.05, at_most=True) for name, ratio in with_page.items()),
    ]
    plain = {name: each.figures for name, each in {**figures, **started_up}.items()}
    conclude("page_views", goals, {**plain, "page_mib": weight, "num_rows": num_rows})


if __name__ == "__main__":
    main()
