"""What notebooks and terminals show: escaped, from any rows, and frames that name what to install."""

import builtins
import subprocess
import sys
from typing import Any

import httpx
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_client import Figure, HtmlPage, Rows, Table, Workbench
from ml_workbench_client.display import NotebookBar, TerminalBar, facts_html, table_html
from ml_workbench_client.frames import columns_of, columns_read
from ml_workbench_service.contracts.jobs import JobEvent
from ml_workbench_service.contracts.resilience import FaultDescription
from tests.integrations.model_cards import model_card

EVIL = "<script>alert('x')</script>"


def job_body(**changed: Any) -> dict[str, Any]:
    body = {
        "id": "j", "kind": "train", "status": "failed", "progress": {"step": 1, "total": 3, "message": EVIL},
        "request": {}, "result": None, "attempt": 1, "created_at": "2030-03-06T12:30:00Z", "started_at": None,
        "finished_at": None, "tracking": {}, "warnings": [EVIL], "correlation_id": "c",
        "error": {"error_type": "TrainingError", "error_code": "TRAINING_ERROR", "message": EVIL},
    }  # fmt: skip
    return {**body, **changed}


def answering(body: Any) -> Workbench:
    return Workbench(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=body)))


def test_everything_shown_is_escaped() -> None:
    rows = Rows([FaultDescription(name=EVIL, summary="a & b")])
    shown = [
        table_html([EVIL], [[EVIL]]),
        facts_html(EVIL, {EVIL: [EVIL], "d": {EVIL: 1.0}}),
        rows._repr_html_(),
        answering(job_body()).job(EVIL)._repr_html_(),
        answering({"jobs": [job_body()], "next_cursor": None}).jobs()._repr_html_(),
        HtmlPage(EVIL)._repr_html_(),
    ]
    for html in shown:
        assert html is not None
        assert "&lt;script&gt;" in html
        assert "<script" not in html


def test_a_repr_never_fails() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error_code": "JOB_NOT_FOUND", "message": "no <b>job</b>"})

    wb = Workbench(transport=httpx.MockTransport(refuse))
    assert "no &lt;b&gt;job" in str(wb.job("j")._repr_html_())
    assert "no &lt;b&gt;job" in str(wb.model("m")._repr_html_())
    assert wb.jobs()._repr_html_() is None


def test_the_bars_move_with_the_events(capsys: pytest.CaptureFixture[str]) -> None:
    def event(seq: int, kind: Any, **data: Any) -> JobEvent:
        return JobEvent.model_validate({"seq": seq, "at": "2030-03-06T12:30:00Z", "type": kind, "data": data})

    events = [
        event(1, "queued"),
        event(2, "progress", step=1, total=4, message="epoch [1]", metrics={"loss": 0.123456789, "skill": None}),
        event(3, "warning", message=EVIL),
        event(4, "succeeded"),
    ]
    with TerminalBar("m 1.0.0") as bar:
        for each in events:
            bar.show(each)
    printed = " ".join(capsys.readouterr().out.split())
    assert "m 1.0.0 succeeded" in printed
    assert "1/1" in printed  # what early stopping left undone is not counted
    assert "epoch [1]" in printed
    shown = NotebookBar(EVIL)
    for each in events[:3]:
        shown.show(each)
    html = shown._repr_html_()
    assert "running 1/4" in html
    assert "loss 0.123457" in html
    assert "<script" not in html


def test_a_notebook_gets_one_output_that_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    outputs: list[str] = []

    class Handle:
        def update(self, bar: NotebookBar) -> None:
            outputs.append(bar._repr_html_())

    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: Handle())
    with NotebookBar("m") as bar:
        bar.show(JobEvent.model_validate({"seq": 1, "at": "2030-03-06T12:30:00Z", "type": "succeeded"}))
    assert "m succeeded" in outputs[0]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("polars", "pandas", "pyarrow"):
            raise ModuleNotFoundError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", without)
    table = Table(b"", "series")
    for open_it, name in ((table.to_polars, "polars"), (table.to_pandas, "pandas"), (table.to_arrow, "pyarrow")):
        with pytest.raises(ImportError, match=f"pip install {name}"):
            open_it()
    assert "series" in table._repr_html_()


def test_columns_of_a_frame_are_those_asked_for_its_last_rows() -> None:
    import polars as pl

    frame = pl.DataFrame({"time": ["a", "b", "c"], "x": [1, 2, 3], "y": [1.5, 2.5, 3.5]})
    assert columns_of(frame, ["y", "x"], num_rows=2) == {"y": [2.5, 3.5], "x": [2.0, 3.0]}
    assert columns_of(frame.to_arrow(), ["x"], num_rows=9) == {"x": [1.0, 2.0, 3.0]}
    with pytest.raises(DataValidationError, match="no column z"):
        columns_of(frame, ["z"], num_rows=2)


def test_a_frame_of_what_expressions_read_stands_for_their_features() -> None:
    import polars as pl

    card = model_card(
        features=("ret(close, 1)", "x"), expressions={"ret(close, 1)": "ret(close, 1)"}, base_columns=("close", "x"),
        history=1, lookback=2,
    )  # fmt: skip
    frame = pl.DataFrame({"close": [1.0, 2.0, 3.0, 4.0], "x": [5.0, 6.0, 7.0, 8.0]})
    assert columns_read(frame, card) == {"close": [2.0, 3.0, 4.0], "x": [6.0, 7.0, 8.0]}
    with_both = frame.with_columns((pl.col("close") / 2).alias("ret(close, 1)"))
    assert columns_read(with_both, card) == {"ret(close, 1)": [1.5, 2.0], "x": [7.0, 8.0]}
    with pytest.raises(DataValidationError, match=r"no column ret\(close, 1\)"):
        columns_read(frame.drop("close"), card)


def test_a_figure_is_drawn_by_the_notebook() -> None:
    figure = Figure({"data": [{"type": "scatter", "y": [1, 2]}], "layout": {"title": {"text": "Equity"}}})
    assert "application/vnd.plotly.v1+json" in figure._repr_mimebundle_()
    assert "Equity: 1 traces" in repr(figure)
    assert figure.to_plotly().layout.title.text == "Equity"


def test_importing_the_client_is_cheap() -> None:
    heavy = ["torch", "numpy", "mlflow", "onnxruntime", "polars", "pandas", "pyarrow", "plotly", "fastapi", "IPython"]
    begin = "import sys; from ml_workbench_client import Job, Workbench"
    code = f"{begin}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    rooms = "{'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('ml_workbench_service.')}"
    code = f"{begin}; print({rooms})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'ml_workbench_service.contracts'}"
