"""HTTP server: uvicorn with the settings' address, TLS, proxies and time-outs; it does not say what it is.

At SIGTERM it takes no more connections, answers what is whole, and gives up after `ANSWERED_WITHIN_S`; event streams
end by themselves (`app`), half-sent requests are ended (`http_protocol`).
"""

import ssl
from typing import Any

from starlette.types import ASGIApp

from ml_workbench_service.settings import Settings

ANSWERED_WITHIN_S = 3


def serve(app: ASGIApp, settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    import uvicorn

    from ml_workbench_service.http_protocol import limited

    uvicorn.run(
        app, host=settings.HOST, port=settings.PORT, log_config=None, access_log=False, server_header=False, ws="none",
        http=limited(headers_s=settings.REQUEST_HEADERS_S, body_s=settings.REQUEST_BODY_S),
        timeout_graceful_shutdown=ANSWERED_WITHIN_S,
        forwarded_allow_ips=settings.BEHIND_PROXY or "127.0.0.1", **_tls(settings),
    )  # fmt: skip


def _tls(settings: Settings) -> dict[str, Any]:
    """Certificates, and with TLS_CLIENT_CA the callers' too."""
    if settings.TLS_CERT is None:
        return {}
    found: dict[str, Any] = {"ssl_certfile": str(settings.TLS_CERT), "ssl_keyfile": str(settings.TLS_KEY)}
    if settings.TLS_CLIENT_CA is not None:
        found |= {"ssl_ca_certs": str(settings.TLS_CLIENT_CA), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found
