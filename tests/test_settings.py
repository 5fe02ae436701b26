"""Settings: the README's table of variables with its defaults, read from the environment and from nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from common_lib import redaction
from common_lib.redaction import redacted
from ml_workbench_service.settings import Settings, mistakes

README = Path(__file__).parents[1] / "README.md"
SEED_DEFAULTS = {
    "LOG_LEVEL": "INFO",
    "PORT": 8005,
    "FEATURE_STORE_URL": None,
    "MODEL_REGISTRY_PATH": Path("model_registry"),
    "EXPERIMENT_TRACKING_URI": None,
    "API_KEY": None,
    "MAX_TRAINING_MEMORY": 16,
    "CUDA_VISIBLE_DEVICES": "0,1",
}
OUR_DEFAULTS = {
    "HOST": "127.0.0.1",
    "STATE_DIR": Path(".workbench"),
    "LOG_DIR": Path("logs"),
    "LOG_MAX_MB": 50,
    "LOG_FILES_KEPT": 5,
    "REDIS_URL": None,
    "STRATEGY_ENGINE_URL": None,
    "PREDICTION_QUEUE_CAPACITY": 100,
    "PREDICTION_QUEUE_POLICY": "drop_oldest",
    "PREDICTION_LEDGER_ROWS": 1_000_000,
    "JOB_RETENTION_DAYS": None,
    "JOBS_MAX_GB": None,
    "JOB_LOG_MAX_MB": 20,
    "DRAFT_RETENTION_DAYS": 7,
    "TRAINING_WORKERS": 1,
    "AGENT_AUTOSTART": True,
    "WARM_WORKER": True,
    "REGISTRY_CACHE_DIR": Path("registry_cache"),
    "REGISTRY_CACHE_GB": 10,
    "SKILL_GATE": "warn",
    "PAGE": True,
    "PAGE_PORT": None,
    "PAGE_URL": None,
    "GRPC_PORT": 0,
    "KEYS_FILE": None,
    "FEATURE_STORE_API_KEY": None,
    "STRATEGY_ENGINE_API_KEY": None,
    "BEHIND_PROXY": None,
    "TLS_CERT": None,
    "TLS_KEY": None,
    "TLS_CLIENT_CA": None,
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_the_seeds_and_the_designs() -> None:
    found = Settings().model_dump()
    assert {name: found[name] for name in SEED_DEFAULTS} == SEED_DEFAULTS
    assert {name: found[name] for name in OUR_DEFAULTS} == OUR_DEFAULTS


def test_the_readmes_table_has_every_variable() -> None:
    table = set(re.findall(r"^\| *`([A-Z_]+)`", README.read_text(encoding="utf-8"), re.M))
    assert table == set(Settings.model_fields)


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "LOG_LEVEL": "debug",
        "PORT": "9001",
        "FEATURE_STORE_URL": "http://store:1",
        "MODEL_REGISTRY_PATH": str(tmp_path),
        "API_KEY": "key",
        "MAX_TRAINING_MEMORY": "2.5",
        "AGENT_AUTOSTART": "false",
        "TRAINING_WORKERS": "3",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = Settings()
    assert (found.LOG_LEVEL, found.PORT, found.MAX_TRAINING_MEMORY, found.TRAINING_WORKERS) == ("DEBUG", 9001, 2.5, 3)
    assert found.API_KEY is not None
    assert found.API_KEY.get_secret_value() == "key"
    assert "key" not in repr(found).replace("API_KEY", "")
    assert found.AGENT_AUTOSTART is False


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name, "")
    assert Settings().model_dump() == {**Settings.model_construct().model_dump()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("LOG_LEVEL", "LOUD"),
        ("MAX_TRAINING_MEMORY", "0"),
        ("MAX_TRAINING_MEMORY", "nan"),
        ("PREDICTION_QUEUE_CAPACITY", "0"),
        ("PREDICTION_QUEUE_CAPACITY", "50001"),  # one script counts through a backlog
        ("PREDICTION_QUEUE_POLICY", "drop_newest"),
        ("PREDICTION_LEDGER_ROWS", "0"),
        ("JOB_RETENTION_DAYS", "0"),
        ("JOBS_MAX_GB", "0"),
        ("JOB_LOG_MAX_MB", "0"),
        ("DRAFT_RETENTION_DAYS", "0"),
        ("TRAINING_WORKERS", "0"),
        ("LOG_MAX_MB", "0"),
        ("REGISTRY_CACHE_DIR", "s3://bucket"),
        ("REGISTRY_CACHE_GB", "0"),
        ("LOG_FILES_KEPT", "0"),
        ("AGENT_AUTOSTART", "perhaps"),
        ("PAGE_PORT", "0"),
        ("GRPC_PORT", "70000"),
        ("PAGE_URL", "quant.example.org"),
    ],
)
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name):
        Settings()


WRONG = {
    "FEATURE_STORE_URL": [
        "ftp://bars",
        "localhost:8001",
        "http://",
        "http://host:99999",
        "file://",
        "s3://bars",
        "bars",
    ],
    "MODEL_REGISTRY_PATH": [
        "s3://",
        "s3://Bucket/models",
        "s3://user:secret@bucket",
        "s3://bucket/../models",
        "http://registry:80",
        "file:///srv/models",
        "mlflow-artifacts:/models",
    ],
    "STATE_DIR": ["s3://bucket", "file:///srv/state"],
    "LOG_DIR": ["gs://bucket/logs"],
    "EXPERIMENT_TRACKING_URI": ["s3://bucket", "localhost:5000", "http://", "redis://host", "disable"],
    "REDIS_URL": ["http://redis:6379", "localhost:6379", "redis://", "redis://host:port", "unix://"],
    "STRATEGY_ENGINE_URL": ["engine:80", "ftp://engine", "https://", "file:///engine"],
    "HOST": ["http://0.0.0.0"],
}
RIGHT = {
    "FEATURE_STORE_URL": ["embedded", "file:///srv/bars", "file://bars", "https://store.example/base", "http://[::1]:80"],
    "MODEL_REGISTRY_PATH": ["./models", "/srv/models", "~/models", "C:models", "s3://bucket", "s3://bucket/models/fx"],
    "REGISTRY_CACHE_DIR": ["./cache", "/var/cache/models"],
    "EXPERIMENT_TRACKING_URI": [
        "embedded", "disabled", "http://mlflow:5000", "sqlite:///x.db", "postgresql+psycopg2://u:p@h/d", "./mlruns",
        "file:///srv/mlruns",
    ],
    "REDIS_URL": ["redis://:pass@host:1/0", "rediss://host", "unix:///run/redis.sock?db=1"],
    "STRATEGY_ENGINE_URL": ["http://engine:80/base"],
    "HOST": ["0.0.0.0", "::1", "localhost"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_an_address_that_its_part_cannot_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=f"(?s){name}.*it takes"):
        Settings()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ROLE": "predict"}, "needs REDIS_URL"),
        ({"ROLE": "control"}, "needs REDIS_URL"),
        ({"ROLE": "predict", "REDIS_URL": "redis://host", "PREDICT_WORKERS": "2"}, "start more processes"),
        ({"ROLE": "replica", "REDIS_URL": "redis://host"}, "ROLE"),
        ({"SIGNING_KEYS": "abc"}, "32 bytes in base64"),
        ({"CONTROL_URL": "control:8005"}, "it takes http"),
    ],
)
def test_a_role_that_cannot_be_played_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=said):
        Settings()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RIGHT.items() for value in values])
def test_what_a_part_can_serve_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert str(getattr(Settings(), name)) in (value, value.removeprefix("./"))


def test_the_service_says_which_variable_is_wrong_and_ends(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PORT": "over-there",
        "MODEL_REGISTRY_PATH": "s3://user:secret@bucket",
        "TRAINING_WORKERS": "-1",
        "STATE_DIR": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "ml_workbench_service.main"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    said = ended.stderr.splitlines()
    assert [line.partition(":")[0] for line in said] == ["PORT", "MODEL_REGISTRY_PATH", "TRAINING_WORKERS"]
    assert said[1].startswith("MODEL_REGISTRY_PATH: it takes a folder's path")
    assert all("correct the environment variable" in line for line in said)
    assert not any(value in ended.stderr for value in ("over-there", "secret"))


def test_a_child_gets_absolute_paths_and_resolved_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("API_KEY", "key")
    changed = Settings(LOG_LEVEL="WARNING", MAX_TRAINING_MEMORY=3)
    found = changed.environment(REDIS_URL="unix:///x", FEATURE_STORE_URL="e")
    assert found["STATE_DIR"] == str(tmp_path / ".workbench")
    assert found["LOG_DIR"] == str(tmp_path / "logs")
    assert found["MODEL_REGISTRY_PATH"] == str(tmp_path / "model_registry")
    assert (found["REDIS_URL"], found["FEATURE_STORE_URL"]) == ("unix:///x", "e")
    assert (found["LOG_LEVEL"], found["MAX_TRAINING_MEMORY"]) == ("WARNING", "3.0")
    assert found["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.chdir("/")
    for name in ("STATE_DIR", "LOG_LEVEL", "MAX_TRAINING_MEMORY"):
        monkeypatch.setenv(name, found[name])
    assert tmp_path / ".workbench" == Settings().STATE_DIR


def test_a_registry_in_a_bucket_is_read_from_its_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Settings(MODEL_REGISTRY_PATH="s3://bucket/models/fx/", REGISTRY_CACHE_DIR=tmp_path)
    assert found.registry_address == "s3://bucket/models/fx"
    assert found.registry_folder == tmp_path / "bucket--models--fx" / "registry"
    assert found.environment()["MODEL_REGISTRY_PATH"] == "s3://bucket/models/fx"
    assert found.environment()["REGISTRY_CACHE_DIR"] == str(tmp_path)
    assert Settings(MODEL_REGISTRY_PATH=tmp_path).registry_address is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    with pytest.raises(ValidationError, match="AWS_ALLOW_HTTP"):
        Settings(MODEL_REGISTRY_PATH="s3://bucket")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert Settings(MODEL_REGISTRY_PATH="s3://bucket").registry_address


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "mlflow_tracking_token"]
)
def test_what_libraries_read_as_a_secret_is_said_nowhere(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(redaction, "_secrets", [])
    monkeypatch.setenv(name, "hunter-two")
    monkeypatch.setenv("MONKEY", "no-secret-at-all")
    Settings()
    assert redaction.redacted("hunter-two, no-secret-at-all") == f"{redaction.MARK}, no-secret-at-all"


@pytest.mark.parametrize(
    ("host", "key", "is_taken"),
    [("127.0.0.1", "short", True), ("localhost", "short", True), ("::1", "short", True), ("0.0.0.0", "short", False),
     ("10.0.0.7", "x" * 15, False), ("0.0.0.0", "x" * 16, True), ("0.0.0.0", None, True)],
)  # fmt: skip
def test_a_short_key_is_refused_where_others_may_guess_it(host: str, key: str | None, is_taken: bool) -> None:
    if is_taken:
        assert host == Settings(HOST=host, API_KEY=key).HOST
        return
    with pytest.raises(ValidationError, match="token_urlsafe") as refused:
        Settings(HOST=host, API_KEY=key)
    assert str(key) not in str(refused.value)
    assert "token_urlsafe" in mistakes(refused.value)[0]


@pytest.mark.parametrize("given", [{"TLS_CERT": "a.pem"}, {"TLS_KEY": "a.pem"}, {"TLS_CLIENT_CA": "ca.pem"}])
def test_half_of_tls_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="TLS_CERT"):
        Settings(**given)


def test_a_collectors_address_matters_where_traces_are_sent() -> None:
    """The variable is a standard one: a machine may have it for other programs, by another protocol."""
    assert not Settings(TRACES=False, OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317").TRACES
    with pytest.raises(ValidationError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        Settings(TRACES=True, OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317")


def test_credentials_in_the_collectors_address_reach_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://user:a-secret-of-the-collector@host/v1/traces")
    Settings()
    assert "a-secret-of-the-collector" not in redacted("https://user:a-secret-of-the-collector@host/v1/traces")


def test_a_cluster_needs_its_heads_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sets RAY_ADDRESS to `host:port` in each process that it starts, so it is looked at where it is used alone."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert Settings().TRAINING_BACKEND == "local"
    monkeypatch.setenv("TRAINING_BACKEND", "ray")
    with pytest.raises(ValidationError, match="needs RAY_ADDRESS"):
        Settings()
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token-of-a-cluster")
    assert Settings().RAY_AUTH_TOKEN is not None
    assert "token-of-a-cluster" not in redacted("a line with token-of-a-cluster")
    assert "RAY_AUTH_TOKEN" not in Settings().environment()
    monkeypatch.setenv("RAY_WORKING_DIR", "./here")
    with pytest.raises(ValidationError, match="zip file"):
        Settings()
