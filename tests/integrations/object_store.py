"""A real S3 server of another project, as a process of its own on loopback, and what of it the registry needs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

START_TIMEOUT_S = 60.0
KEYS = {
    "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret-key", "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}  # fmt: skip


class ObjectStore:
    """moto's server; `url` stays the same when it is stopped (`freeze`, `thaw`), and its buckets with it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        with (folder / "object_store.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline_s, "the object store does not start"
                time.sleep(0.05)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process find it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def new_bucket(self) -> str:
        """The address of a prefix in a bucket of its own."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT"), timeout=10).close()
        return f"s3://{name}/models/eur"

    def freeze(self) -> None:
        """It takes connections, and answers none of them."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends it."""
        self.thaw()
        self._process.kill()
        self._process.wait()
