"""A small real Feature Store server: the remote contract of api.md over a socket, with faults to switch on.

    with FeatureStoreServer(store) as server:
        RemoteFeatureStore(server.url)

By hand: `python -m tests.integrations.feature_store.feature_store_server FOLDER --port 8001` serves a folder of bars.
"""

import argparse
import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.contract import iso_of_ms, to_ms
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote import ARROW

FAULTS = (
    "error",
    "nonsense",
    "slow",
    "drip",
    "oversized",
    "redirect",
    "infinity",
    "nan",
    "unequal",
    "unsorted",
    "absent",
)


@dataclass
class Behaviour:
    """What the server offers, how it misbehaves, and what it was asked."""

    offers_batch: bool = True
    offers_arrow: bool = False
    offers_list: bool = True
    available_after_ms: int | None = None  # later than the bar's end by so much, where given
    fault: str | None = None
    slow_s: float = 1.0
    api_key: str | None = None
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)


def create_app(store: FeatureStore, behaviour: Behaviour) -> FastAPI:
    """The contract over any feature store."""
    app = FastAPI()

    @app.exception_handler(PlatformError)
    async def render(_: Request, error: PlatformError) -> JSONResponse:
        return JSONResponse(error.body("none"), status_code=error.status)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy", "service": "feature-store"}

    @app.post("/api/v1/features/batch")
    async def batch(request: Request) -> Response:
        behaviour.requests.append(("POST", request.url.path, dict(request.headers)))
        if not behaviour.offers_batch:
            return JSONResponse({"message": "no such route"}, status_code=404)
        query = await request.json()
        return await _answer(store, behaviour, request, query["symbols"], query, is_batch=True)

    @app.get("/api/v1/features")
    async def listed() -> Any:
        if not behaviour.offers_list:
            return JSONResponse({"message": "no such route"}, status_code=404)
        return {"features": [entry.model_dump(mode="json") for entry in store.describe()]}

    @app.get("/api/v1/features/{symbol:path}")
    async def single(request: Request, symbol: str) -> Response:
        behaviour.requests.append(("GET", request.scope["raw_path"].decode(), dict(request.headers)))
        query: dict[str, Any] = dict(request.query_params)
        query["features"] = query["features"].split(",")
        return await _answer(store, behaviour, request, [symbol], query, is_batch=False)

    return app


async def _answer(
    store: FeatureStore, behaviour: Behaviour, request: Request, symbols: list[str], query: Mapping[str, Any],
    *, is_batch: bool,
) -> Response:  # fmt: skip
    if behaviour.api_key and request.headers.get("x-api-key") != behaviour.api_key:
        return JSONResponse({"message": "wrong key"}, status_code=401)
    early = await _early_fault(behaviour)
    if early is not None:
        return early
    tables = store.fetch(
        symbols,
        query["timeframe"],
        start_ms=_ms(query["start_date"]),
        end_ms=_ms(query["end_date"]),
        features=query["features"],
        as_of_ms=_ms(query["as_of"]) if "as_of" in query else None,
    )
    if behaviour.offers_arrow and ARROW in request.headers["accept"]:
        return Response(_arrow(tables, behaviour), media_type=ARROW)
    results = [_result(table, behaviour) for table in tables]
    body: Any = {"results": results} if is_batch else results[0]
    return Response(json.dumps(body), media_type="application/json")


async def _early_fault(behaviour: Behaviour) -> Response | None:
    if behaviour.fault == "error":
        return JSONResponse({"message": "boom"}, status_code=500)
    if behaviour.fault == "nonsense":
        return Response("<html>hello</html>", media_type="text/html")
    if behaviour.fault == "slow":
        await asyncio.sleep(behaviour.slow_s)
    if behaviour.fault in ("drip", "oversized"):
        pause_s, size = (0.05, 1) if behaviour.fault == "drip" else (0.0, 1 << 16)

        async def chunks() -> Any:
            for _ in range(100):
                yield b" " * size
                await asyncio.sleep(pause_s)

        return StreamingResponse(chunks(), media_type="application/json")
    if behaviour.fault == "redirect":
        return RedirectResponse("/health", status_code=307)
    return None


def _ms(text: str) -> int:
    from datetime import datetime

    return to_ms(datetime.fromisoformat(text))


def _result(table: FeatureTable, behaviour: Behaviour) -> dict[str, Any]:
    timestamps = [iso_of_ms(int(moment)) for moment in table.opened_ms]
    features: dict[str, list[Any]] = {
        name: [None if np.isnan(value) else float(value) for value in column] for name, column in table.columns.items()
    }
    first = next(iter(features))
    if behaviour.fault in ("infinity", "nan"):
        features[first][-1] = float(behaviour.fault)
    if behaviour.fault == "unequal":
        features[first].pop()
    if behaviour.fault == "absent":
        del features[first]
    if behaviour.fault == "unsorted":
        timestamps.reverse()
    result: dict[str, Any] = {
        "symbol": table.symbol.replace("/", "_"),
        "timeframe": table.timeframe,
        "timestamps": timestamps,
        "features": features,
    }
    if behaviour.available_after_ms is not None:
        result["available_at"] = [
            iso_of_ms(int(moment) + behaviour.available_after_ms) for moment in table.available_at_ms
        ]
    return result


def _arrow(tables: list[FeatureTable], behaviour: Behaviour) -> bytes:
    frames = []
    for table in tables:
        opened = pl.Series("timestamp", table.opened_ms).cast(pl.Datetime("ms", "UTC"))
        columns = [pl.Series(name, column, nan_to_null=True) for name, column in table.columns.items()]
        if behaviour.fault in ("infinity", "nan"):
            columns[0][-1] = float(behaviour.fault)
        if behaviour.fault == "absent":
            columns = columns[1:]
        if behaviour.fault == "unsorted":
            opened = opened.reverse()
        symbols = pl.Series("symbol", [table.symbol] * len(table))
        frames.append(pl.DataFrame([symbols, opened, *columns]))
    buffer = io.BytesIO()
    pl.concat(frames).write_ipc_stream(buffer)
    return buffer.getvalue()


class FeatureStoreServer(AbstractContextManager["FeatureStoreServer"]):
    """The server in a thread, on a free loopback port, from `with` to its end."""

    def __init__(self, store: FeatureStore, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(create_app(store, self.behaviour), log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> "FeatureStoreServer":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


def main() -> None:
    """Serves a folder of bars until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8001)
    given = parser.parse_args()
    app = create_app(LocalFeatureStore(FolderBars(given.folder)), Behaviour())
    uvicorn.run(app, host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
