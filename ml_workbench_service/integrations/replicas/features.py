"""The control process's feature store, as a predict worker asks it: over its socket, the same numbers to the bit.

So one process reads the user's files and keeps what it decided about them, and a worker loads none of the libraries
that reading takes.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from common_lib import exceptions
from common_lib.exceptions import PlatformError, UnavailableError, UpstreamTimeoutError
from common_lib.tracing import outgoing
from ml_workbench_service.contracts.market import (
    FeatureDescription,
    FeatureKind,
    FeatureTable,
    OutsideThing,
)
from ml_workbench_service.contracts.reading_reports import ReadingReport, SeriesList

if TYPE_CHECKING:
    import httpx

NOW, FEATURES = "/now", "/features"
TIMEOUT_S = 60.0
_PLAIN = ("symbol", "timeframe", "data_source", "calendar", "fill", "price_side", "spread_time", "declares_times")


def table_to_wire(table: FeatureTable) -> dict[str, Any]:
    """As `table_from_wire` reads it."""
    return {
        **{name: getattr(table, name) for name in _PLAIN},
        "opened_ms": _packed(table.opened_ms, "<i8"),
        "available_at_ms": _packed(table.available_at_ms, "<i8"),
        "columns": {name: _packed(values, "<f8") for name, values in table.columns.items()},
        "warnings": list(table.warnings),
        "reports": [each.model_dump(mode="json") for each in table.reports],
    }


def table_from_wire(plain: dict[str, Any]) -> FeatureTable:
    """The same table again."""
    assert {each.name for each in fields(FeatureTable)} == plain.keys()
    return FeatureTable(
        **{name: plain[name] for name in _PLAIN},
        opened_ms=_unpacked(plain["opened_ms"], "<i8"),
        available_at_ms=_unpacked(plain["available_at_ms"], "<i8"),
        columns={name: _unpacked(values, "<f8") for name, values in plain["columns"].items()},
        warnings=tuple(plain["warnings"]),
        reports=tuple(ReadingReport.model_validate(each) for each in plain["reports"]),
    )


def _packed(values: np.ndarray, kind: str) -> str:
    return b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")


def _unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), dtype=kind).astype(kind[1:])


class ControlFeatureStore:
    """A `FeatureStore` for what predictions need; may be called from any thread.

    Args:
        control: the control process's socket.
    """

    def __init__(self, control: Path) -> None:
        import httpx  # a twentieth of a start, which the control process has no use for

        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(control), limits=httpx.Limits(max_keepalive_connections=0)),
            base_url="http://control",
            timeout=TIMEOUT_S,
        )

    def fetch(
        self, symbols: Sequence[str], timeframe: str, *, start_ms: int | None, end_ms: int | None,
        features: Sequence[str], as_of_ms: int | None = None, last: int | None = None,
    ) -> list[FeatureTable]:  # fmt: skip
        """See `FeatureStore`; raises UnavailableError where the control process is away."""
        asked = {
            "symbols": list(symbols), "timeframe": timeframe, "start_ms": start_ms, "end_ms": end_ms,
            "features": list(features), "as_of_ms": as_of_ms, "last": last,
        }  # fmt: skip
        return [table_from_wire(each) for each in self._ask(FEATURES, orjson.dumps(asked))]

    def now_ms(self) -> int | None:
        """See `FeatureStore`."""
        now_ms: int | None = self._ask(NOW, b"")
        return now_ms

    def describe(self) -> list[FeatureDescription]:
        """Nobody asks a predict worker."""
        raise _elsewhere()

    def series(self) -> SeriesList:
        """Nobody asks a predict worker."""
        raise _elsewhere()

    def kind_of(self, feature: str) -> FeatureKind:
        """Nobody asks a predict worker."""
        raise _elsewhere()

    def check(self) -> OutsideThing:
        """How it is."""
        return OutsideThing(mode="embedded", state="ok", detail="by way of the control process")

    def _ask(self, path: str, body: bytes) -> Any:
        import httpx

        try:
            headers = {"content-type": "application/json", **outgoing()}
            answer = self._client.post(path, content=body, headers=headers)
        except httpx.TimeoutException as error:
            raise UpstreamTimeoutError("the features did not come in time; try again, or send them along") from error
        except httpx.TransportError as error:
            raise UnavailableError(
                "the control process, which fetches features, is away; send them along, or try again in a moment",
                retry_after_s=1,
            ) from error
        if answer.status_code == 200:
            return orjson.loads(answer.content)
        raise told(answer)


def told(answer: "httpx.Response") -> PlatformError:
    """The control process's error as this one's."""
    said = orjson.loads(answer.content)
    kind = getattr(exceptions, str(said.get("error_type")), PlatformError)
    if not (isinstance(kind, type) and issubclass(kind, PlatformError)):
        kind = PlatformError
    wait = answer.headers.get("retry-after", "")
    return kind(said["message"], details=said.get("details"), retry_after_s=int(wait) if wait.isdigit() else None)


def _elsewhere() -> UnavailableError:
    return UnavailableError("this is the control process's; a predict worker passes such requests on")
