"""API documentation (`/docs`, `/redoc`, `/openapi.json`) without the internet, from `fastapi-offline`'s files;
and where the start address `/` leads."""

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.document.openapi import document

ASSETS_PATH = "/docs-assets"
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:"
)

STARTING = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>ML Workbench</title></head><body style="font:16px system-ui,sans-serif;margin:3rem">
<p>The page is starting. The API's own pages are at <a href="/docs">/docs</a>.</p></body></html>"""


def install(app: FastAPI) -> None:
    """Serves both pages and their assets from the package; no request leaves the machine."""
    assets = Path(str(files("fastapi_offline").joinpath("static")))
    app.mount(ASSETS_PATH, StaticFiles(directory=assets), name="docs-assets")

    about: dict[str, Any] = {"openapi_url": "/openapi.json", "title": f"{app.title} · API"}
    swagger = get_swagger_ui_html(
        **about,
        swagger_js_url=f"{ASSETS_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS_PATH}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS_PATH}/favicon.png",
        swagger_ui_parameters={"displayRequestDuration": True, "defaultModelsExpandDepth": 0, "validatorUrl": None},
    )
    redoc = get_redoc_html(
        **about,
        redoc_js_url=f"{ASSETS_PATH}/redoc.standalone.js",
        redoc_favicon_url=f"{ASSETS_PATH}/favicon.png",
        with_google_fonts=False,
    )
    for path, page in (("/docs", swagger), ("/redoc", redoc)):
        app.add_api_route(path, partial(_sealed, page), include_in_schema=False)
    app.add_api_route("/", _start, include_in_schema=False)

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


async def _start(request: Request) -> Response:
    """The start address leads to the page, and to the API's own pages where there is none."""
    service = getattr(request.app.state, "service", None)
    page = service.page if isinstance(service, AppState) else None
    address = page.address(request.url.hostname or "127.0.0.1") if page is not None else None
    if page is None or page.is_missing:
        return RedirectResponse("/docs", status_code=307)
    if address is not None and await page.answers():
        return RedirectResponse(address, status_code=307)
    return HTMLResponse(STARTING, status_code=503, headers={"Retry-After": "2", "Cache-Control": "no-store"})


async def _sealed(page: HTMLResponse) -> HTMLResponse:
    """Tells the browser to ask nobody else: the scripts would fetch a logo from their makers, for one."""
    page.headers["Content-Security-Policy"] = CONTENT_POLICY
    return page
