"""Redis as others run it: TLS, users with few rights, no default user, no memory left; each by a real server."""

import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common_lib.exceptions import UnavailableError
from ml_workbench_service.integrations.embedded_redis import find_redis_server
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.prediction_records import prediction_record
from tests.service_process import SEED_PREDICT, ServiceProcess, free_port

PASSWORD = "s3cret-of-the-workbench"
RIGHTS = "~ml_workbench:* -@all +@read +@write +@connection +@scripting -@dangerous +time +info"
"""As docs/operations.md names them."""
START_S = 20.0


class Served:
    """One server by its port; `url` has user and password."""

    def __init__(self, folder: Path, *options: str, tls: bool = False, user: str = "") -> None:
        self.port = free_port()
        self.folder = folder
        at = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
        common = ["--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
        self._process = subprocess.Popen(
            [str(find_redis_server()), *at, *common, *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        kind, more = ("rediss", f"?ssl_ca_certs={folder / 'ca.pem'}") if tls else ("redis", "")
        self.plain = f"{kind}://127.0.0.1:{self.port}/0{more}"
        self.url = self.plain.replace("://", f"://{user}:{PASSWORD}@") if user else self.plain
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None:
                assert self._process.stdout is not None
                said = self._process.stdout.read().decode()
                if "tls" in said.lower():
                    pytest.skip("this redis-server was built without TLS")
                raise AssertionError(said)
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            except redis.RedisError:  # it is there, and does not let this user in
                return

    def client(self) -> redis.Redis:
        """One that may do everything that the user may."""
        return redis.Redis.from_url(self.url, protocol=2)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    opened: list[Served] = []

    def start(*options: str, **more: Any) -> Served:
        opened.append(Served(tmp_path, *options, **more))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def certified(folder: Path) -> tuple[str, ...]:
    """A certificate for 127.0.0.1 that signs itself; the options that serve by it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(private)
    files = {"tls-cert-file": "ca.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "ca.pem"}
    options = [part for name, file in files.items() for part in (f"--{name}", str(folder / file))]
    return (*options, "--tls-auth-clients", "no")


def user(rights: str = RIGHTS) -> tuple[str, ...]:
    """Nobody but this user is let in."""
    lines = ["--user", "default", "off", "--user", "workbench", "on", f">{PASSWORD}"]
    return (*lines, *rights.split())


def published(url: str) -> int:
    queue = RedisPredictionQueue(url, capacity=100)
    try:
        queue.create_group("tested")
        taken = queue.publish([prediction_record(number) for number in range(3)])
        found = queue.consume("tested", "one", block_ms=0)
        assert queue.ack("tested", [each.entry_id for each in found]) == taken
        return taken
    finally:
        queue.close()


def test_over_tls(serve: Serve, tmp_path: Path) -> None:
    server = serve(*certified(tmp_path), tls=True)
    assert published(server.url) == 3
    with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        published(server.url.partition("?")[0])


def test_a_user_with_few_rights_and_no_default_user(serve: Serve) -> None:
    server = serve(*user(), user="workbench")
    assert published(server.url) == 3
    with pytest.raises(redis.exceptions.NoPermissionError), server.client() as client:
        client.flushall()


@pytest.mark.parametrize("stranger", ["", "nobody:wrong-words@", "workbench:wrong-words@"])
def test_who_is_not_let_in_is_told_so_without_the_password(serve: Serve, stranger: str) -> None:
    server = serve(*user(), user="workbench")
    with pytest.raises(UnavailableError, match="check REDIS_URL") as refused:
        published(server.plain.replace("://", f"://{stranger}"))
    assert "Authentication" in refused.value.message or "WRONGPASS" in refused.value.message
    assert "wrong-words" not in refused.value.message


def test_with_no_memory_left_nothing_is_taken_and_later_everything(serve: Serve) -> None:
    server = serve("--maxmemory-policy", "noeviction")
    queue, client = RedisPredictionQueue(server.url, capacity=50_000), server.client()
    queue.create_group("tested")
    queue.publish([prediction_record(number) for number in range(5)])
    client.config_set("maxmemory", 1)
    with pytest.raises(UnavailableError, match="maxmemory"):
        queue.publish([prediction_record(10)])
    assert queue.accounting().length == 5, "who only looks is answered"
    assert len(queue.consume("tested", "one", block_ms=0)) == 5, "who consumes makes room"
    client.config_set("maxmemory", 0)
    assert queue.publish([prediction_record(10)]) == 1
    assert queue.accounting().length == 6
    queue.close()
    client.close()


@pytest.mark.more
def test_a_service_by_tls_and_such_a_user_goes_on_without_memory(
    serve: Serve, service: ServiceProcess, tmp_path: Path
) -> None:
    server = serve(*certified(tmp_path), *user(f"{RIGHTS} +config"), tls=True, user="workbench")
    here = tmp_path / "here"
    copy_version(registry_of(service) / "small" / "1.0.0", here / "registry", "small", "1.0.0")
    running = ServiceProcess(here, REDIS_URL=server.url, PREDICTION_QUEUE_CAPACITY="1000").start()
    try:
        body = {"version": "1.0.0", "deployment_target": "local"}
        running.client.post("/api/v1/models/small/deploy", json=body).raise_for_status()
        ask = "/api/v1/models/small/predict"
        guaranteed = {"params": {"enqueue": "guaranteed"}, "json": SEED_PREDICT}
        running.client.post(ask, **guaranteed).raise_for_status()
        assert thing(running) == "ok"
        with server.client() as client:
            client.config_set("maxmemory", 1)
            assert running.client.post(ask, json=SEED_PREDICT).status_code == 200
            assert running.client.post(ask, **guaranteed).status_code == 503
            client.config_set("maxmemory", 0)
        deadline = time.monotonic() + START_S
        while running.client.post(ask, **guaranteed).status_code != 200:
            assert time.monotonic() < deadline, "it does not come back"
        assert PASSWORD not in running.output.read_text()
        assert PASSWORD not in running.client.get("/health/ready").text
    finally:
        running.close()


def thing(running: ServiceProcess) -> str:
    found: str = running.client.get("/health/ready").json()["things"]["redis"]["state"]
    return found
