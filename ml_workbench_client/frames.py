"""Frames: tables of the service as polars, pandas or Arrow, and columns of such frames as what a request holds.

None of these libraries is imported before it is asked for, and a missing one is named.
"""

import importlib
import io
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from common_lib.exceptions import DataValidationError
from ml_workbench_client.display import MOST_ROWS, table_html

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from ml_workbench_service.contracts.models import ModelCard

T = TypeVar("T")
ARROW = "application/vnd.apache.arrow.stream"


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}; install it with `pip install {name}`") from error


class Table:
    """A table as it came: an Arrow stream. `to_polars()`, `to_pandas()` and `to_arrow()` open it."""

    def __init__(self, stream: bytes, title: str = "") -> None:
        self.stream = stream
        self.title = title

    def to_polars(self) -> "pl.DataFrame":
        """As a polars DataFrame."""
        frame: pl.DataFrame = _library("polars").read_ipc_stream(io.BytesIO(self.stream))
        return frame

    def to_arrow(self) -> "pa.Table":
        """As a pyarrow Table."""
        ipc = _library("pyarrow").ipc
        table: pa.Table = ipc.open_stream(io.BytesIO(self.stream)).read_all()
        return table

    def to_pandas(self) -> "pd.DataFrame":
        """As a pandas DataFrame, by way of pyarrow, which pandas needs for that too."""
        _library("pandas")
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def __repr__(self) -> str:
        return f"<Table {self.title}: {len(self.stream):,} bytes; to_polars(), to_pandas(), to_arrow()>"

    def _repr_html_(self) -> str:
        try:
            frame = self.to_polars()
        except ImportError:
            return table_html(["table", "bytes"], [[self.title, len(self.stream)]])
        return table_html(frame.columns, frame.head(MOST_ROWS).rows(), num_more=max(len(frame) - MOST_ROWS, 0))


class Rows(list[T], Generic[T]):
    """A list of contracts that shows itself as a table, and becomes a frame."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """Each row as a dictionary, times as datetimes."""
        return [each.model_dump() if isinstance(each, BaseModel) else dict(_named(each)) for each in self]

    def to_polars(self) -> "pl.DataFrame":
        """As a polars DataFrame."""
        frame: pl.DataFrame = _library("polars").DataFrame(self.records, infer_schema_length=None, strict=False)
        return frame

    def to_pandas(self) -> "pd.DataFrame":
        """As a pandas DataFrame."""
        frame: pd.DataFrame = _library("pandas").DataFrame(self.records)
        return frame

    def to_arrow(self) -> "pa.Table":
        """As a pyarrow Table."""
        table: pa.Table = _library("pyarrow").Table.from_pylist(self.records)
        return table

    def _repr_html_(self) -> str:
        records = self.records[:MOST_ROWS]
        columns = list(dict.fromkeys(name for record in records for name in record))
        cells = [[record.get(name) for name in columns] for record in records]
        return table_html(columns, cells, num_more=max(len(self) - MOST_ROWS, 0))


def _named(row: Any) -> Mapping[str, Any]:
    return row if isinstance(row, Mapping) else {"value": row}


def is_frame(value: Any) -> bool:
    """Whether it is a DataFrame of pandas or polars, or a table of pyarrow: something with named columns."""
    return not isinstance(value, Mapping) and (hasattr(value, "columns") or hasattr(value, "column_names"))


def columns_read(frame: Any, card: "ModelCard") -> dict[str, list[float]]:
    """What a model reads of a frame: its features; where expressions make them and the frame lacks one, the columns
    that those are made of, with the bars that they look back."""
    there = set(frame.column_names if hasattr(frame, "column_names") else frame.columns)
    if not there.issuperset(card.features) and card.base_columns and there.issuperset(card.base_columns):
        return columns_of(frame, card.base_columns, num_rows=card.lookback + card.history)
    return columns_of(frame, card.features, num_rows=card.lookback)


def columns_of(frame: Any, names: Sequence[str], *, num_rows: int) -> dict[str, list[float]]:
    """These columns of a frame, its last rows.

    Raises:
        DataValidationError: the frame lacks some.
    """
    there = list(frame.column_names if hasattr(frame, "column_names") else frame.columns)
    missing = [name for name in names if name not in there]
    if missing:
        raise DataValidationError.at(
            "features", f"the frame has no column {', '.join(missing)}; the model reads {', '.join(names)}"
        )
    return {name: _values(frame[name])[-num_rows:] for name in names}


def _values(column: Any) -> list[float]:
    for method in ("to_list", "tolist", "to_pylist"):
        if hasattr(column, method):
            return [float(each) for each in getattr(column, method)()]
    return [float(each) for each in column]


class Document(dict[str, Any]):
    """A JSON document as the service answered it."""

    def _repr_html_(self) -> str:
        return table_html(["", ""], list(self.items()))


class Figure(Document):
    """A Plotly figure as JSON: notebooks draw it, `to_plotly()` makes it one of plotly's own."""

    def to_plotly(self) -> Any:
        """As `plotly.graph_objects.Figure`."""
        return _library("plotly.graph_objects").Figure(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"application/vnd.plotly.v1+json": dict(self), "text/plain": repr(self)}

    def __repr__(self) -> str:
        title = (self.get("layout") or {}).get("title")
        name = title.get("text", "") if isinstance(title, dict) else title or ""
        return f"<Figure {name}: {len(self.get('data') or ())} traces; to_plotly()>"


class HtmlPage:
    """A report: one page that opens without network."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save(self, path: str) -> str:
        """Writes it to a file; its path."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.text)
        return path

    def __repr__(self) -> str:
        return f"<HtmlPage: {len(self.text):,} characters; save(path)>"

    def _repr_html_(self) -> str:
        import html

        return (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:720px;border:0" '
            f'srcdoc="{html.escape(self.text, quote=True)}"></iframe>'
        )
