"""HTTP server: uvicorn with the settings' address, TLS, proxies and time-outs; it does not say what it is.

At SIGTERM it takes no more connections, answers what is whole, and gives up after `ANSWERED_WITHIN_S`; event streams
end by themselves (`app`), half-sent requests are ended (`http_protocol`). Each predict worker is such a server; the
control process behind them is asked by them alone, over its Unix socket.
"""

import ssl
from typing import Any

from fastapi import FastAPI

from ml_workbench_service.predict_processes import behind_predict_workers
from ml_workbench_service.settings import Settings

ANSWERED_WITHIN_S = 3


QUIET: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "ws": "none"}


def serve(app: FastAPI, settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C: by itself, or behind its predict workers."""
    import uvicorn

    if not settings.PREDICT_WORKERS:
        uvicorn.run(app, host=settings.HOST, port=settings.PORT, **public(app, settings))
        return
    with behind_predict_workers(app, settings) as (door, control):
        # The workers have ended what is half there, and have read what a proxy says.
        uvicorn.run(door, uds=str(control), proxy_headers=False, timeout_graceful_shutdown=ANSWERED_WITHIN_S, **QUIET)


def public(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """uvicorn's settings of a process that clients reach, for its app."""
    from ml_workbench_service.http_protocol import limited

    return {
        **QUIET, **_tls(settings),
        "http": limited(
            headers_s=settings.REQUEST_HEADERS_S, body_s=settings.REQUEST_BODY_S, straight=app.state.straight
        ),
        "timeout_graceful_shutdown": ANSWERED_WITHIN_S,
        "forwarded_allow_ips": settings.BEHIND_PROXY or "127.0.0.1",
    }  # fmt: skip


def _tls(settings: Settings) -> dict[str, Any]:
    """Certificates, and with TLS_CLIENT_CA the callers' too."""
    if settings.TLS_CERT is None:
        return {}
    found: dict[str, Any] = {"ssl_certfile": str(settings.TLS_CERT), "ssl_keyfile": str(settings.TLS_KEY)}
    if settings.TLS_CLIENT_CA is not None:
        found |= {"ssl_ca_certs": str(settings.TLS_CLIENT_CA), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found
