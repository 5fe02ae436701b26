"""Settings: the README's table of variables, one field a row, read once in `main` from the environment."""

import base64
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from common_lib.redaction import keep_address_secret, keep_secret

EMBEDDED = "embedded"
DEFAULT_FEATURE_STORE_URL = "http://localhost:8001"
DEFAULT_EXPERIMENT_TRACKING_URI = "http://localhost:5000"
_HTTP = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SAYS_SECRET = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
"""Names of variables that libraries read, such as MLFLOW_TRACKING_PASSWORD and AWS_SECRET_ACCESS_KEY."""
_COLLECTORS_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
PUBLIC_KEY_BYTES = 32
"""Of Ed25519."""
SHORTEST_API_KEY = 16
"""On an address that others reach: what people think up is guessed sooner or later."""
MAKE_A_KEY = 'python3 -c "import secrets; print(secrets.token_urlsafe(24))"'
_IS_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9_][A-Za-z0-9._=-]*)*/?")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def _folder(value: object) -> object:
    """A folder of this machine: an address would become a folder of that name below the working directory."""
    if _IS_ADDRESS.match(str(value)):
        raise ValueError("it takes a folder's path on this machine, such as ./folder or /srv/folder, and no address")
    return value


def _registry(value: object) -> Path | str:
    """A folder of this machine, or a prefix of a bucket."""
    text = str(value)
    if _BUCKET.fullmatch(text):
        return text.rstrip("/")
    if _IS_ADDRESS.match(text):
        raise ValueError(
            "it takes a folder's path on this machine, such as ./folder or /srv/folder, or s3://bucket/prefix; an "
            "object store's endpoint and credentials are the usual AWS_* variables"
        )
    return Path(text)


def _server(text: str) -> str:
    """An address by http or https."""
    if not _has_host(text, _HTTP):
        raise ValueError("it takes http://host:port or https://host:port")
    return text


def _feature_store(text: str) -> str:
    """What `resources.open_feature_store` opens."""
    is_folder = text.startswith("file://") and len(text) > len("file://")
    if text != EMBEDDED and not is_folder and not _has_host(text, _HTTP):
        raise ValueError("it takes `embedded`, file:///folder/of/bars, http://host:port or https://host:port")
    return text


def _tracking(text: str) -> str:
    """What MLflow opens as a tracking store."""
    scheme = text.partition(":")[0].partition("+")[0]
    is_store = "://" in text and scheme in (*_DATABASES, "file")
    is_folder = ":" not in text and "/" in text
    if text not in (EMBEDDED, "disabled") and not is_store and not is_folder and not _has_host(text, _HTTP):
        raise ValueError(
            f"it takes `embedded`, `disabled`, http://host:port, https://host:port, a database "
            f"({', '.join(f'{name}://' for name in _DATABASES)}) or a folder"
        )
    return text


def _redis(text: str) -> str:
    """What the Redis client connects to."""
    is_socket = text.startswith("unix://") and len(text) > len("unix://")
    if not is_socket and not _has_host(text, ("redis", "rediss")):
        raise ValueError("it takes redis://host:port/number, rediss://host:port/number or unix:///path/of/socket")
    return text


def _has_host(text: str, schemes: tuple[str, ...]) -> bool:
    """Whether it is an address of one of these kinds that names a host, and no impossible port."""
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxies(text: str) -> str:
    """Addresses or networks, with commas between them."""
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            ipaddress.ip_network(each, strict=False)
        except ValueError:
            raise ValueError(
                "it takes the addresses of your proxies, such as 127.0.0.1 or 10.0.0.0/24, with commas between them"
            ) from None
    return text


def _public_keys(text: str) -> str:
    """Public halves of signing keys, with commas between them."""
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            num_bytes = len(base64.b64decode(each, validate=True))
        except ValueError:
            num_bytes = 0
        if num_bytes != PUBLIC_KEY_BYTES:
            raise ValueError(
                "it takes the public keys of the control plane's signing_keys.json (32 bytes in base64 each), with "
                "commas between them"
            )
    return text


def _of_headers(*texts: str) -> list[str]:
    """The values of headers that are written `name=value,name=value`, as OpenTelemetry reads them."""
    pairs = [pair.partition("=")[2].strip() for text in texts for pair in text.split(",")]
    return [each for value in pairs if value for each in {value, unquote(value)}]


def _listening(text: str) -> str:
    """An address to listen on is no URL."""
    if "/" in text:
        raise ValueError("it takes an address of this machine, such as 127.0.0.1 or 0.0.0.0, without http://")
    return text


OF_THE_DOOR = frozenset({
    "API_KEY", "WORKBENCH_API_KEY", "STRATEGY_ENGINE_API_KEY", "KEYS_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA",
    "BEHIND_PROXY", "RAY_AUTH_TOKEN",
})  # fmt: skip
"""Variables that no child process needs: the service alone lets callers in, and submits to a cluster."""
Folder = Annotated[Path, BeforeValidator(_folder)]


class Settings(BaseSettings):
    """What the environment says; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    PORT: Annotated[int, Field(ge=0, le=65535)] = 8005
    FEATURE_STORE_URL: Annotated[str, AfterValidator(_feature_store)] | None = None
    MODEL_REGISTRY_PATH: Annotated[Path | str, PlainValidator(_registry)] = Path("./model_registry")
    EXPERIMENT_TRACKING_URI: Annotated[str, AfterValidator(_tracking)] | None = None
    API_KEY: SecretStr | None = None
    MAX_TRAINING_MEMORY: Annotated[float, Field(gt=0, description="GB")] = 16
    CUDA_VISIBLE_DEVICES: str = "0,1"

    ACCELERATOR: str | None = None
    HOST: Annotated[str, AfterValidator(_listening)] = "127.0.0.1"
    STATE_DIR: Folder = Path(".workbench")
    LOG_DIR: Folder = Path("logs")
    LOG_FORMAT: Literal["console", "json"] = "console"
    LOG_MAX_MB: Annotated[float, Field(ge=0.001, le=100_000)] = 50
    LOG_FILES_KEPT: Annotated[int, Field(ge=1, le=1000)] = 5
    REDIS_URL: Annotated[str, AfterValidator(_redis)] | None = None
    STRATEGY_ENGINE_URL: Annotated[str, AfterValidator(_server)] | None = None
    BARS_TIMEZONE: str | None = None
    # One script counts through a backlog, and the server waits for it: see "Choosing" in docs/operations.md.
    PREDICTION_QUEUE_CAPACITY: Annotated[int, Field(ge=1, le=50_000)] = 100
    PREDICTION_QUEUE_POLICY: Literal["drop_oldest", "reject", "block"] = "drop_oldest"
    PREDICTION_QUEUE_TTL_S: Annotated[float, Field(gt=0, le=31_536_000, description="seconds")] | None = None
    PREDICTION_QUEUE_SHARDS: Annotated[int, Field(ge=1, le=64)] = 1
    PREDICT_WORKERS: Annotated[int, Field(ge=0, le=64)] = 0
    REGISTRY_CACHE_DIR: Folder = Path("./registry_cache")
    REGISTRY_CACHE_GB: Annotated[float, Field(ge=0.001, le=1_000_000, description="GB")] = 10
    ROLE: Literal["control", "predict"] | None = None
    CONTROL_URL: Annotated[str, AfterValidator(_server)] | None = None
    SIGNING_KEYS: Annotated[str, AfterValidator(_public_keys)] | None = None
    PREDICTION_LEDGER_ROWS: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    JOB_RETENTION_DAYS: Annotated[float, Field(gt=0, le=36_500, description="days")] | None = None
    JOBS_MAX_GB: Annotated[float, Field(ge=0.001, le=1_000_000, description="GB")] | None = None
    JOB_LOG_MAX_MB: Annotated[float, Field(ge=0.001, le=100_000, description="MB")] = 20
    DRAFT_RETENTION_DAYS: Annotated[float, Field(gt=0, le=36_500, description="days")] = 7
    TRAINING_WORKERS: Annotated[int, Field(ge=1, le=64)] = 1
    REPLAY_WORKERS: Annotated[int, Field(ge=1, le=64)] = 8
    MAX_WAITING_JOBS: Annotated[int, Field(ge=1, le=10_000)] = 100
    MAX_JOB_HOURS: Annotated[float, Field(gt=0, le=8760, description="hours")] | None = None
    WARM_WORKER: bool = True
    TABLE_IDLE_S: Annotated[float, Field(gt=0, le=86_400, description="seconds")] = 30
    GRPC_PORT: Annotated[int, Field(ge=0, le=65535)] = 0
    AGENT_AUTOSTART: bool = True
    PAGE: bool = True
    PAGE_PORT: Annotated[int, Field(ge=1, le=65535)] | None = None
    PAGE_URL: Annotated[str, AfterValidator(_server)] | None = None
    SKILL_GATE: Literal["warn", "enforce"] = "warn"
    KEYS_FILE: Folder | None = None
    FEATURE_STORE_API_KEY: SecretStr | None = None
    STRATEGY_ENGINE_API_KEY: SecretStr | None = None
    BEHIND_PROXY: Annotated[str, AfterValidator(_proxies)] | None = None
    TLS_CERT: Folder | None = None
    TLS_KEY: Folder | None = None
    TLS_CLIENT_CA: Folder | None = None
    REQUEST_HEADERS_S: Annotated[float, Field(gt=0, le=3600, description="seconds")] = 10
    REQUEST_BODY_S: Annotated[float, Field(gt=0, le=3600, description="seconds")] = 20
    TRAINING_BACKEND: Literal["local", "ray"] = "local"
    RAY_ADDRESS: str | None = None
    RAY_AUTH_TOKEN: SecretStr | None = None
    RAY_PYTHON: str | None = None
    RAY_IMAGE: str | None = None
    RAY_WORKING_DIR: str | None = None
    RAY_CPUS: Annotated[int, Field(ge=1, le=1024)] = 1
    RAY_GPUS: Annotated[float, Field(ge=0, le=64)] = 0
    TRACES: bool = False
    OTEL_EXPORTER_OTLP_ENDPOINT: str = "http://localhost:4318"
    OTEL_SERVICE_NAME: str = "ml-workbench"

    @field_validator("LOG_LEVEL", mode="before")
    @classmethod
    def _upper(cls, text: object) -> object:
        return text.upper() if isinstance(text, str) else text

    @model_validator(mode="after")
    def _keep_secrets(self) -> "Settings":
        """From here on no line, error or event of this process says them."""
        keep_secret(*(value for name, value in os.environ.items() if _SAYS_SECRET.search(name)))
        keep_secret(*_of_headers(*(os.environ.get(name, "") for name in _COLLECTORS_HEADERS)))
        for secret in (self.API_KEY, self.FEATURE_STORE_API_KEY, self.STRATEGY_ENGINE_API_KEY, self.RAY_AUTH_TOKEN):
            if secret is not None:
                keep_secret(secret.get_secret_value())
        for address in (
            self.FEATURE_STORE_URL, self.EXPERIMENT_TRACKING_URI, self.REDIS_URL, self.STRATEGY_ENGINE_URL,
            self.PAGE_URL, self.CONTROL_URL, self.OTEL_EXPORTER_OTLP_ENDPOINT,
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ):  # fmt: skip
            keep_address_secret(address or "")
        return self

    @model_validator(mode="after")
    def _check_collector(self) -> "Settings":
        """Only where it is used: a machine may have the standard variable for other programs, by gRPC or empty."""
        if self.TRACES and not _has_host(self.OTEL_EXPORTER_OTLP_ENDPOINT, _HTTP):
            raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT takes http://host:port or https://host:port")
        return self

    @model_validator(mode="after")
    def _check_cluster(self) -> "Settings":
        """Only where it is used: Ray sets RAY_ADDRESS to something else in each process that it starts."""
        if self.TRAINING_BACKEND == "local":
            return self
        if not _has_host(self.RAY_ADDRESS or "", _HTTP):
            raise ValueError("TRAINING_BACKEND=ray needs RAY_ADDRESS, the head's dashboard, such as http://head:8265")
        if self.RAY_WORKING_DIR is not None and not _IS_ADDRESS.match(self.RAY_WORKING_DIR):
            raise ValueError("RAY_WORKING_DIR takes the address of a zip file, such as s3://bucket/workbench.zip")
        return self

    @model_validator(mode="after")
    def _check_bucket(self) -> "Settings":
        """Obstore refuses plain HTTP only at the first request, in words that name no variable."""
        endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
        is_allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
        if self.registry_address is not None and endpoint.startswith("http://") and not is_allowed:
            raise ValueError(
                "the object store's endpoint is plain HTTP, over which bundles pass in clear; use https, or set "
                "AWS_ALLOW_HTTP=true"
            )
        return self

    @model_validator(mode="after")
    def _check_door(self) -> "Settings":
        """What would leave the service open, or without what TLS needs."""
        key = "" if self.API_KEY is None else self.API_KEY.get_secret_value()
        if key and len(key) < SHORTEST_API_KEY and not is_loopback(self.HOST):
            raise ValueError(
                f"API_KEY has {len(key)} characters, too few for HOST={self.HOST}, where others may guess at it; "
                f"make one of at least {SHORTEST_API_KEY}: {MAKE_A_KEY}"
            )
        if (self.TLS_CERT is None) != (self.TLS_KEY is None):
            raise ValueError("TLS_CERT and TLS_KEY belong together; set both, or neither")
        if self.TLS_CLIENT_CA is not None and self.TLS_CERT is None:
            raise ValueError("TLS_CLIENT_CA asks callers for certificates; set TLS_CERT and TLS_KEY too")
        return self

    @model_validator(mode="after")
    def _check_role(self) -> "Settings":
        """What a control plane and its replicas need of each other."""
        if self.ROLE is not None and self.REDIS_URL is None:
            raise ValueError(
                f"ROLE={self.ROLE} needs REDIS_URL, the Redis server by which control plane and replicas know each "
                "other; set it to the same server for all of them, or leave ROLE unset for one machine"
            )
        if self.ROLE == "predict" and self.PREDICT_WORKERS:
            raise ValueError("PREDICT_WORKERS are a control plane's; start more processes with ROLE=predict instead")
        return self

    @property
    def control_url(self) -> str:
        """CONTROL_URL, or this machine's own address."""
        scheme = "http" if self.TLS_CERT is None else "https"
        return self.CONTROL_URL or f"{scheme}://{self.HOST}:{self.PORT}"

    @property
    def registry_address(self) -> str | None:
        """MODEL_REGISTRY_PATH where it is a bucket's prefix."""
        return self.MODEL_REGISTRY_PATH if isinstance(self.MODEL_REGISTRY_PATH, str) else None

    @property
    def registry_folder(self) -> Path:
        """Where the registry is read on this machine: its own folder, or a bucket's mirror below REGISTRY_CACHE_DIR."""
        if isinstance(self.MODEL_REGISTRY_PATH, Path):
            return self.MODEL_REGISTRY_PATH.resolve()
        name = self.MODEL_REGISTRY_PATH.removeprefix("s3://").replace("/", "--")
        return self.REGISTRY_CACHE_DIR.resolve() / name / "registry"

    @property
    def job_log_bytes(self) -> int:
        """JOB_LOG_MAX_MB in bytes."""
        return int(self.JOB_LOG_MAX_MB * 1_000_000)

    def environment(self, **resolved: str) -> dict[str, str]:
        """The environment of a child process: this one's, absolute paths, and the addresses resolved at start."""
        environment = {name: value for name, value in os.environ.items() if name not in OF_THE_DOOR}
        environment.update(
            STATE_DIR=str(self.STATE_DIR.resolve()),
            LOG_DIR=str(self.LOG_DIR.resolve()),
            MODEL_REGISTRY_PATH=self.registry_address or str(self.registry_folder),
            REGISTRY_CACHE_DIR=str(self.REGISTRY_CACHE_DIR.resolve()),
            # Empty hides every GPU, and must not count as unset here.
            CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", self.CUDA_VISIBLE_DEVICES),
            LOG_LEVEL=self.LOG_LEVEL,
            MAX_TRAINING_MEMORY=str(self.MAX_TRAINING_MEMORY),
            **resolved,
        )
        return environment


class JobAddress(BaseSettings):
    """What a worker elsewhere is started with (`elsewhere.environment`); nobody sets it by hand."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    ML_WORKBENCH_JOB_URL: str | None = None
    ML_WORKBENCH_JOB_TOKEN: SecretStr | None = None


def mistakes(error: ValidationError) -> list[str]:
    """What is wrong with each variable, without the value that it has."""
    return [
        ": ".join([*map(str, each["loc"][:1]), each["msg"].removeprefix("Value error, ")])
        for each in error.errors(include_input=False)
    ]
