"""Options of the page's process, read once from the environment that the service gives it."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Options:
    """What the page's process is told.

    Attributes:
        service_url: where the service answers on this machine.
        host: what to listen on; without a key it is the loopback whatever was asked for.
        port: of the page.
        needs_key: whether the service has an API key, so that the page asks for it.
        page_url: as browsers reach the page, where a proxy stands before it; empty: directly.
        parent_pid: the process that started the page, with which it ends; 0: none.
    """

    service_url: str
    host: str = LOOPBACK
    port: int = 8006
    needs_key: bool = False
    page_url: str = ""
    parent_pid: int = 0

    @classmethod
    def of_environment(cls) -> "Options":
        """From WORKBENCH_URL and the PAGE_… variables."""
        read = os.environ.get
        needs_key = read("PAGE_NEEDS_KEY", "") == "true"
        return cls(
            service_url=read("WORKBENCH_URL") or "http://127.0.0.1:8005",
            host=(read("PAGE_HOST") or LOOPBACK) if needs_key else LOOPBACK,
            port=int(read("PAGE_PORT") or 8006),
            needs_key=needs_key,
            page_url=(read("PAGE_URL") or "").rstrip("/"),
            parent_pid=int(read("PAGE_PARENT") or 0),
        )

    @property
    def page_host(self) -> str:
        """The host of `page_url`, with its port where it has one; empty without."""
        return urlsplit(self.page_url).netloc.lower()

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the page by https alone, so that cookies may be kept to it."""
        return self.page_url.startswith("https://")
