"""Things outside: bars, Redis, MLflow, the port, and the service that answers at the address."""

import errno
import json
import os
import socket
from typing import Any, get_args

import httpx

from common_lib.command_line import CommandLine
from common_lib.exceptions import PlatformError
from common_lib.redaction import redacted
from ml_workbench_service.cli.checks.finding import Finding, State
from ml_workbench_service.contracts.extras import DISTRIBUTION, is_installed
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.integrations.embedded_redis import find_redis_server
from ml_workbench_service.resources import open_feature_store
from ml_workbench_service.settings import (
    DEFAULT_EXPERIMENT_TRACKING_URI,
    DEFAULT_FEATURE_STORE_URL,
    EMBEDDED,
    Settings,
)

TIMEOUT_S = 5.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OF_STATE: dict[str, State] = {"ok": "ok", "degraded": "doubtful", "down": "broken", "disabled": "off"}
assert set(OF_STATE) == set(get_args(OutsideThing.model_fields["state"].annotation))


def feature_store(settings: Settings) -> list[Finding]:
    """Whether the bars that the service would read are there."""
    address = settings.FEATURE_STORE_URL
    if address is None:
        answered = _answer(DEFAULT_FEATURE_STORE_URL + "/health")
        is_there = answered is not None and "feature-store" in answered.text
        where = f"the server at {DEFAULT_FEATURE_STORE_URL}" if is_there else "the embedded sample"
        step = "" if is_there else "for your own bars set FEATURE_STORE_URL=file:///folder/of/bars"
        return [Finding("feature store", "ok", f"{where} (FEATURE_STORE_URL is not set)", step)]
    secret = settings.FEATURE_STORE_API_KEY
    key = None if secret is None else secret.get_secret_value()
    try:
        thing = open_feature_store(address, bars_timezone=settings.BARS_TIMEZONE, api_key=key).check()
    except PlatformError as error:
        return [Finding("feature store", "broken", error.message, "correct FEATURE_STORE_URL")]
    step = "" if thing.state == "ok" else "correct FEATURE_STORE_URL, or start the server"
    if address.startswith("file:"):
        step = "`ml-workbench data check FOLDER` says how each file is read"
    elif address == EMBEDDED:
        step = ""
    return [Finding("feature store", OF_STATE[thing.state], f"{thing.mode}: {thing.detail or 'it answers'}", step)]


def redis(settings: Settings) -> list[Finding]:
    """Whether REDIS_URL answers, else whether there is a server to embed."""
    if settings.REDIS_URL is None:
        try:
            return [Finding("Redis", "ok", f"embedded: {find_redis_server()} (REDIS_URL is not set)")]
        except PlatformError as error:
            return [Finding("Redis", "broken", error.message)]
    import redis as client

    place = redacted(settings.REDIS_URL)
    try:
        with client.Redis.from_url(
            settings.REDIS_URL, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as opened:
            version = str(opened.info("server").get("redis_version", ""))
    except (client.RedisError, OSError) as error:
        return [Finding("Redis", "broken", f"{place}: {redacted(str(error))}", "start it, or correct REDIS_URL")]
    return [Finding("Redis", "ok", f"{place} answers, version {version}")]


def tracking(settings: Settings) -> list[Finding]:
    """Whether MLflow's server answers, or its package is there for the embedded store."""
    uri = settings.EXPERIMENT_TRACKING_URI
    if uri == "disabled":
        return [Finding("MLflow", "off", "EXPERIMENT_TRACKING_URI=disabled")]
    is_set = uri is not None and uri != EMBEDDED
    address = uri if is_set and uri else DEFAULT_EXPERIMENT_TRACKING_URI
    place = redacted(address)
    if is_set and not place.startswith("http"):
        return [_mlflow_package(f"the store {place}")]
    answered = _answer(address.rstrip("/") + "/version")
    if answered is not None and answered.status_code == httpx.codes.OK:
        return [Finding("MLflow", "ok", f"{place} answers, version {answered.text.strip()[:40]}")]
    if is_set:
        step = "start it, or correct EXPERIMENT_TRACKING_URI; trainings go on meanwhile"
        return [Finding("MLflow", "broken", f"{place} does not answer", step)]
    return [_mlflow_package("the embedded store")]


def port(settings: Settings) -> list[Finding]:
    """Whether the service could listen there, or does already."""
    place = f"{settings.HOST}:{settings.PORT}"
    family = socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.HOST, settings.PORT))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                step = "set HOST to an address of this machine, or PORT to one above 1023"
                return [Finding("port", "broken", f"{place}: {error.strerror}", step)]
        else:
            return [Finding("port", "ok", f"{place} is free")]
    host = f"[{settings.HOST}]" if ":" in settings.HOST else settings.HOST
    answered = _answer(f"http://{'127.0.0.1' if settings.HOST == '0.0.0.0' else host}:{settings.PORT}/health")
    if answered is not None and _is_ours(answered):
        return [Finding("port", "ok", f"{place}: the service listens there")]
    return [Finding("port", "broken", f"{place} is taken by another program", "end it, or set PORT to another")]


def service(line: CommandLine) -> list[Finding]:
    """Whether a service answers at the address, takes the key, and works with everything."""
    url = (line.url or os.environ.get("WORKBENCH_URL") or "http://127.0.0.1:8005").rstrip("/")
    key = line.api_key or os.environ.get("WORKBENCH_API_KEY")
    answered = _answer(url + "/health")
    if answered is None:
        step = "`ml-workbench serve` starts it; one elsewhere is named by --url or WORKBENCH_URL"
        return [Finding("service", "off", f"nobody answers at {url}", step)]
    if not _is_ours(answered):
        step = "correct --url or WORKBENCH_URL"
        return [Finding("service", "broken", f"{url} answers {answered.status_code}, and is no ML Workbench", step)]
    found = [Finding("service", "ok", f"{url} answers, version {answered.json().get('version')}")]
    allowed = _answer(url + "/api/v1/queue", key=key)
    if allowed is None or allowed.status_code in (401, 403):
        step = "set WORKBENCH_API_KEY to the service's API_KEY" if key is None else "correct WORKBENCH_API_KEY"
        found.append(Finding("service's key", "broken", "the service wants another key", step))
    else:
        found.append(Finding("service's key", "ok", "taken" if key else "none is needed from here"))
    ready = _answer(url + "/health/ready", key=key)
    things: dict[str, Any] = (
        {} if ready is None or ready.status_code != httpx.codes.OK else ready.json().get("things", {})
    )
    for name, thing in things.items():
        state = OF_STATE.get(thing.get("state"), "doubtful")
        detail = ": ".join(each for each in (thing.get("mode", ""), thing.get("detail", "")) if each)
        found.append(Finding(f"service's {name.replace('_', ' ')}", state, detail))
    return found


def _mlflow_package(what: str) -> Finding:
    if not is_installed("tracking"):
        step = f"pip install {DISTRIBUTION}[tracking], or set EXPERIMENT_TRACKING_URI=disabled"
        return Finding("MLflow", "broken", f"{what} needs the extra `tracking`, which is not installed", step)
    return Finding("MLflow", "ok", f"{what}, by the installed package")


def _is_ours(answered: httpx.Response) -> bool:
    try:
        body = answered.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(body, dict) and body.get("status") == "healthy" and "version" in body


def _answer(url: str, *, key: str | None = None) -> httpx.Response | None:
    """What answers there; None: nothing."""
    headers = [(b"X-API-Key", key.encode())] if key else []
    try:
        return httpx.get(url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
