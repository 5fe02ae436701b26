"""A small real Strategy Execution Engine: `POST /api/v1/strategies/register` and `/unregister` over a socket.

It has moods to switch on.

with StrategyEngineServer() as engine:
    StrategyEngine(engine.url, …)
    engine.mood = "refuse"
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Mood = Literal["accept", "refuse", "redirect", "slow", "hang_up"]


class StrategyEngineServer:
    """Remembers every registration in `received`; one Idempotency-Key is one strategy, however often it is sent."""

    def __init__(self, *, api_key: str | None = None, slow_s: float = 1.0) -> None:
        self.mood: Mood = "accept"
        self.api_key = api_key
        self.slow_s = slow_s
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.unregistered: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.strategies: dict[str, dict[str, Any]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> int | None:
        """The status for a registration; None hangs up without an answer."""
        is_end = path == "/api/v1/strategies/unregister"
        if path != "/api/v1/strategies/register" and not is_end:
            return 404
        if self.api_key is not None and headers.get("x-api-key") != self.api_key:
            return 401
        (self.unregistered if is_end else self.received).append((headers, body))
        if self.mood == "slow":
            time.sleep(self.slow_s)
        if self.mood == "accept" and is_end:
            return 200 if self.strategies.pop(headers["idempotency-key"].removeprefix("undeploy-"), None) else 404
        if self.mood == "accept":
            self.strategies[headers["idempotency-key"]] = body
        return {"refuse": 409, "redirect": 307, "hang_up": None}.get(self.mood, 201)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = engine.answer(self.path, headers, body)
                self.close_connection = True
                if status is None:
                    return
                try:
                    self.send_response(status)
                    if status == 307:
                        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client had no more patience

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        return Handler
