"""Entry point of the page's process: `python -m ml_workbench_client.page`."""

import asyncio
import errno
import logging
import os
import socket
import sys
import threading
import time

PARENT_EVERY_S = 0.5
LEFT_OUT = ("redis", "requests", "aiohttp")
"""What NiceGUI and its socket library import where it is installed, and nothing here uses: 20 MiB of this process."""
log = logging.getLogger("ml_workbench_client.page")


def main() -> int:
    """Serves until it is told to end, or the process that started it has gone."""
    for name in ("API_KEY", "WORKBENCH_API_KEY"):
        os.environ.pop(name, None)  # the page holds keys that were shown to it, and no other
    os.environ["NO_PROXY"] = "*"  # the key that a visitor showed goes to the service itself
    for name in LEFT_OUT:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    from ml_workbench_client.page.options import Options

    options = Options.of_environment()
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        bound = _bind(options.host, options.port)
    except OSError as error:
        taken = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        log.error("port %d %s, so that there is no page; set PAGE_PORT to another one", options.port, taken)
        return 0  # trying again would change nothing
    _end_with(options.parent_pid)
    from ml_workbench_client.page.serving import serve

    asyncio.run(serve(options, bound))
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Bound before anything is imported, so that a taken port costs nothing; it listens once there is an app."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found


def _end_with(parent_pid: int) -> None:
    """Ends this process when its parent has: one that was killed tells nobody."""
    if not parent_pid:
        return

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(PARENT_EVERY_S)
        os._exit(0)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
