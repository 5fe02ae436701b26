"""Where gRPC listens; apart from the server, which is loaded where there is a port."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GrpcSettings:
    """Where gRPC listens, 0: nowhere; and with which certificates, as HTTP does."""

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
