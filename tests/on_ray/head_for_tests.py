"""A head that misbehaves: Ray's Jobs API in small over real HTTP, for what a real cluster does not do on request."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "token-of-the-tests"
Answer = tuple[int, bytes] | None


class HeadForTests:
    """Submissions stay as they are set. `fault` sees each request first: what it returns is answered instead, and None
    leaves the connection without an answer; `PASS` has the request done.

    Attributes:
        jobs: each submission by its id.
        asked: every request.
        log: what every submission prints.
    """

    PASS: Answer = (0, b"")

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.log = b""
        self.fault: Callable[[str, str], Answer] = lambda method, path: self.PASS
        self.after: Callable[[str, str], bool] = lambda method, path: True  # whether what was done is answered
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def start(self) -> "HeadForTests":
        """Answers when this returns; started again at the same port, it still knows its jobs."""
        handler = type("Handler", (_Handler,), {"head": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuses connections."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def done(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """As the real one does."""
        name = path.removeprefix("/api/jobs/").partition("/")[0]
        if path.startswith("/api/v0/logs/"):
            return 200, self.log
        if path == "/api/version":
            return _ok({"ray_version": "2.60.0"})
        if path == "/api/jobs/" and method == "GET":
            return _ok(list(self.jobs.values()))
        if path == "/api/jobs/":
            if body["submission_id"] in self.jobs:
                return 500, b"ValueError: Job with submission_id already exists. Please use a different submission_id."
            self.jobs[body["submission_id"]] = {
                "submission_id": body["submission_id"], "status": "PENDING", "metadata": body["metadata"], "type": "X",
            }  # fmt: skip
            return _ok({"submission_id": body["submission_id"]})
        if name not in self.jobs:
            return 404, b"does not exist"
        if method == "DELETE":
            del self.jobs[name]
        elif path.endswith("/stop"):
            self.jobs[name]["status"] = "STOPPED"
        return _ok(self.jobs.get(name, {}))


def _ok(body: Any) -> Answer:
    return 200, json.dumps(body).encode()


class _Handler(BaseHTTPRequestHandler):
    head: HeadForTests
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or b"{}")
        path = self.path.partition("?")[0]
        self.head.asked.append(f"{self.command} {path}")
        answer = self.head.fault(self.command, path)
        if answer == HeadForTests.PASS:
            authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            answer = self.head.done(self.command, path, body) if authorized else (401, b"Unauthorized")
            if not self.head.after(self.command, path):
                answer = None
        if answer is None:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_GET = do_POST = do_DELETE = _serve
