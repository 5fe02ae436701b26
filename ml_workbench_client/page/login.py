"""Login: a plain form, so that the key passes through no script; POST checks it against the service itself."""

import html
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from common_lib.exceptions import AuthenticationError, PlatformError
from ml_workbench_client.page.door import LOGIN_PATH
from ml_workbench_client.page.options import Options
from ml_workbench_client.page.sessions import COOKIE, IDLE_S, AttemptLimit, Sessions

MOST_FORM_BYTES = 10_000
FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Sign in · ML Workbench</title>
<style>
:root {{ --paper:#f6f7f9; --card:#fff; --text:#1f2933; --muted:#52606d; --line:#cbd2d9; --accent:#005a8c;
  --bad:#a63a00 }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper:#0f1318; --card:#171c23; --text:#e6e9ed; --muted:#a3adb8;
  --line:#3a4450; --accent:#56b4e9; --bad:#f0a35e }} .go {{ color:#0b1016 !important }} }}
body {{ margin:0; min-height:100vh; display:grid; place-items:center; background:var(--paper); color:var(--text);
  font:16px/1.5 system-ui,sans-serif }}
main {{ width:min(22rem, calc(100vw - 3rem)); background:var(--card); border:1px solid var(--line); border-radius:12px;
  padding:1.75rem }}
h1 {{ font-size:1.25rem; margin:0 0 .25rem }} p {{ margin:0 0 1.25rem; color:var(--muted); font-size:.9rem }}
label {{ display:block; font-weight:600; margin-bottom:.35rem }}
input, button {{ box-sizing:border-box; width:100%; font:inherit; padding:.6rem .75rem; border-radius:8px }}
input {{ border:1px solid var(--line); background:var(--paper); color:var(--text) }}
.go {{ margin-top:1rem; border:0; background:var(--accent); color:#fff; font-weight:600; cursor:pointer }}
.failure {{ color:var(--bad); font-weight:600; margin:.75rem 0 0 }}
:focus-visible {{ outline:3px solid var(--accent); outline-offset:2px }}
</style></head><body><main><h1>ML Workbench</h1>
<p>This service has a key. It is the value of API_KEY that the service was started with.</p>
<form method="post" action="{action}"><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus{described}>
{failure}<button class="go" type="submit">Sign in</button></form></main></body></html>"""


def router(options: Options, sessions: Sessions) -> APIRouter:
    """`/login` and `/logout`."""
    found = APIRouter()
    attempts = AttemptLimit()

    @found.get(LOGIN_PATH)
    async def show(request: Request) -> Response:
        if not options.needs_key:
            return RedirectResponse("/", status_code=303)
        return _form(_next(request))

    @found.post(LOGIN_PATH)
    async def check(request: Request) -> Response:
        address = request.client.host if request.client else ""
        target = _next(request)
        wait_s = attempts.wait_s(address)
        if wait_s > 0:
            said = f"Too many attempts. Try again in {wait_s:.0f} seconds."
            return _form(target, said, status=429, headers={"Retry-After": f"{wait_s:.0f}"})
        key = await _key(request)
        attempts.note_failure(address)  # before the service is asked, so that attempts at once count as many
        identifier, session = await sessions.begin(key)
        try:
            await session.bench.models(limit=1).all()
        except PlatformError as error:
            await sessions.end(identifier)
            if isinstance(error, AuthenticationError):
                return _form(target, "This is not the service's key.", status=401)
            return _form(target, error.message, status=503)
        attempts.forgive(address)
        await sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse(target, status_code=303)
        answer.set_cookie(
            COOKIE, identifier, max_age=round(IDLE_S), path="/", httponly=True, samesite="strict",
            secure=options.is_https,
        )  # fmt: skip
        return answer

    @found.post("/logout")
    async def leave(request: Request) -> Response:
        await sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse(LOGIN_PATH, status_code=303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    return found


async def _key(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_FORM_BYTES:
            return ""
    key = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip()
    return key if key.isprintable() and key else "none"  # an empty key would send none at all


def _next(request: Request) -> str:
    """Where to go after the login: a path of this page and nothing else."""
    asked = request.query_params.get("next", "/")
    is_path = asked.startswith("/") and not asked.startswith(("//", "/\\", LOGIN_PATH)) and asked.isprintable()
    return asked if is_path else "/"


def _form(target: str, failure: str = "", *, status: int = 200, headers: dict[str, str] | None = None) -> HTMLResponse:
    said = f'<p class="failure" id="failure" role="alert">{html.escape(failure)}</p>' if failure else ""
    page = FORM.format(
        action=html.escape(f"{LOGIN_PATH}?next={quote(target, safe='')}"),
        failure=said,
        described=' aria-describedby="failure"' if failure else "",
    )
    return HTMLResponse(page, status_code=status, headers={"Cache-Control": "no-store", **(headers or {})})
