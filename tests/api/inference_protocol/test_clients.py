"""The protocol's own clients, unchanged, each in a process of its own: two of them may not share one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.inference_protocol.asking import body, essence, json_tensor, plain_records, window_of
from tests.conftest import registry_of
from tests.generated_clients.conftest import BENCH, installed
from tests.integrations.bundles import copy_version
from tests.service_process import ServiceProcess, free_port

pytestmark = pytest.mark.more
KEY = "the-key-of-the-protocol"
PEERS = ("tritonclient[http,grpc]==2.73.0", "mlserver==1.7.1")
CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def peers() -> Path:
    """The programs of an environment with the clients."""
    folder = BENCH / "inference-clients"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    python = folder / "venv" / "bin" / "python"
    if uv is None:
        make: list[str | Path] = [sys.executable, "-m", "venv", "--clear", "venv"]
        fill: list[str | Path] = [python, "-m", "pip", "install", "--quiet", *PEERS]
    else:
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, "venv"]
        fill = [uv, "pip", "install", "--quiet", "--python", python, *PEERS]
    return installed(folder, json.dumps(PEERS), make, fill) / "venv" / "bin"


@pytest.fixture(scope="module")
def speaking(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, int]]:
    """A service with a key and a gRPC port, and `small` in float32."""
    folder, port = tmp_path_factory.mktemp("speaking"), free_port()
    for version in ("1.0.0", "1.1.0"):
        source = registry_of(service) / "small" / version
        copy_version(source, folder / "registry", "small", version, precision="fp32")
    running = ServiceProcess(folder, API_KEY=KEY, GRPC_PORT=str(port), AGENT_AUTOSTART="false")
    running.client.headers["X-API-Key"] = KEY
    try:
        yield running.start(), port
    finally:
        running.close()


def test_its_messages_are_those_of_other_servers(peers: Path) -> None:
    ours = "ml_workbench_service/api/inference_protocol/messages.py"
    for theirs in ("tritonclient.grpc.service_pb2", "mlserver.grpc.dataplane_pb2"):
        program = CLIENTS / "compare_messages.py"
        done = subprocess.run(
            [peers / "python", program, ours, theirs], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("client", ["triton_http", "triton_grpc", "mlserver_schema"])
def test_a_client_is_answered_as_predict_answers(
    client: str, peers: Path, speaking: tuple[ServiceProcess, int]
) -> None:
    running, port = speaking
    for requests in ([body()], [body("EUR/USD"), body("GBP/USD"), body("EUR/USD", last=24)]):
        expected = plain_records(running.client, "small", *requests, **{"X-Correlation-ID": "the-same"})
        asked = {
            "http": f"127.0.0.1:{running.port}",
            "grpc": f"127.0.0.1:{port}",
            "key": KEY,
            "windows": [window_of(each).tolist() for each in requests],
            "symbols": [each["symbol"] for each in requests],
            "as_of": requests[0]["as_of"],
        }
        done = subprocess.run(
            [peers / "python", CLIENTS / f"{client}.py"], input=json.dumps(asked), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert "X-API-Key" in said.pop("refused")[0]
        assert len(said) >= 2
        for way, records in said.items():
            assert [essence(json.loads(each)) for each in records] == expected, way


def test_mlservers_own_command_infers_from_a_file(
    peers: Path, speaking: tuple[ServiceProcess, int], tmp_path: Path
) -> None:
    running, _ = speaking
    requests = [body("EUR/USD"), body("GBP/USD")]
    lines = [
        {
            "id": str(number),
            "inputs": [
                json_tensor("window", window_of(each)[None]),
                json_tensor("symbol", [each["symbol"]], "BYTES"),
                json_tensor("as_of", [each["as_of"]], "BYTES"),
            ],
        }
        for number, each in enumerate(requests)
    ]
    source, target = tmp_path / "asked.jsonl", tmp_path / "said.jsonl"
    source.write_text("\n".join(json.dumps(each) for each in lines) + "\n", encoding="utf-8")
    options = f"-u 127.0.0.1:{running.port} -m small -i {source} -o {target} -b --batch-size 2 --workers 1"
    headers = ["-H", f"X-API-Key:{KEY}", "-H", "X-Correlation-ID:the-same"]
    command = [peers / "mlserver", "infer", *options.split(" "), *headers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = plain_records(running.client, "small", *requests, **{"X-Correlation-ID": "the-same"})
    answers = sorted(map(json.loads, target.read_text(encoding="utf-8").splitlines()), key=lambda each: each["id"])
    assert len(answers) == 2, answers
    for answer, record in zip(answers, expected, strict=True):
        (found,) = (each for each in answer["outputs"] if each["name"] == "record")
        assert essence(json.loads(found["data"][0])) == record
