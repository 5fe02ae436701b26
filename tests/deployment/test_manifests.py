"""Manifests of deploy/kubernetes: Kubernetes' own schemas take them, and all that they name of the service exists."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import generate_latest

from ml_workbench_service.access.operations import OPERATIONS
from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.serving.inference_line import InferenceLine
from ml_workbench_service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("local-training", "cluster")
KUBERNETES = ("1.31", "1.34")
OF_OPERATORS = {"ray.io/v1", "monitoring.coreos.com/v1"}
"""Kinds that an operator brings; of them the pods within are checked."""
OF_OTHERS = {
    "REDIS_PASSWORD", "PYTHONPATH", "RAY_AUTH_MODE",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION",
}  # fmt: skip
"""Variables that Redis' command, Python, Ray and object storage's client read."""
OURS = {"control-plane": ("control", "train"), "replica": ("serve",), "ray-head": ("train",), "ray-worker": ("train",)}
"""Of our containers the images that may run in them."""

Document = dict[str, Any]


def built(overlay: str, folder: Path) -> list[Document]:
    """What kustomize makes of an overlay, with secrets that the example's names stand for."""
    program = shutil.which("kubectl") or shutil.which("kustomize")
    if program is None:
        pytest.skip("neither kubectl nor kustomize is on this machine")
    copy = shutil.copytree(FOLDER, folder / "kubernetes")
    place = copy / "overlays" / overlay
    (place / "secrets.env").write_text((place / "secrets.env.example").read_text().replace("=\n", "=made-up\n"))
    words = ["kustomize"] if Path(program).name == "kubectl" else ["build"]
    done = subprocess.run([program, *words, place], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return built(request.param, tmp_path_factory.mktemp(request.param))


def pods(document: Document) -> Iterator[Document]:
    """The pod templates within a document, whatever its kind."""
    spec = document.get("spec", {})
    if document["kind"] == "RayCluster":
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]
    elif "template" in spec:
        yield spec["template"]


def containers(documents: list[Document]) -> Iterator[Document]:
    """Every container of every pod."""
    for document in documents:
        for pod in pods(document):
            yield from pod["spec"]["containers"]


def of_kind(documents: list[Document], kind: str) -> Iterator[Document]:
    """The documents of a kind."""
    return (each for each in documents if each["kind"] == kind)


def test_kubernetes_takes_every_document(documents: list[Document]) -> None:
    for document in documents:
        checked = [document] if document["apiVersion"] not in OF_OPERATORS else []
        checked += [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", **pod.get("metadata", {})}, **pod}
            for pod in pods(document)
        ]
        for each in checked:
            for version in KUBERNETES:
                kubernetes_validate.validate({"metadata": {"name": "one"}, **each}, version, strict=True)


def test_kubernetes_would_refuse_a_misspelt_field(documents: list[Document]) -> None:
    service = dict(next(of_kind(documents, "Service")))
    service["spec"] = {**service["spec"], "selektor": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, KUBERNETES[0], strict=True)


def test_every_variable_is_a_setting(documents: list[Document]) -> None:
    named = {each["name"] for container in containers(documents) for each in container.get("env", ())}
    for document in of_kind(documents, "ConfigMap"):
        if document["metadata"]["name"].startswith("ml-workbench"):
            named |= set(document["data"])
    assert {"ROLE", "REDIS_URL", "API_KEY", "MODEL_REGISTRY_PATH", "PORT"} <= named
    assert named - OF_OTHERS <= set(Settings.model_fields)


def test_every_secret_is_in_the_example_and_none_in_the_repository(documents: list[Document]) -> None:
    wanted: dict[str, set[str]] = {}
    for container in containers(documents):
        for variable in container.get("env", ()):
            chosen = variable.get("valueFrom", {}).get("secretKeyRef")
            if chosen and not chosen.get("optional"):
                wanted.setdefault(chosen["name"], set()).add(chosen["key"])
    for monitor in of_kind(documents, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["authorization"]["type"] == "Bearer"
            chosen = endpoint["authorization"]["credentials"]
            wanted.setdefault(chosen["name"], set()).add(chosen["key"])
    given = {each["metadata"]["name"]: set(each["data"]) for each in of_kind(documents, "Secret")}
    (name,) = given
    assert set(wanted) <= {name}
    assert all(keys <= given[name] for keys in wanted.values())
    for example in FOLDER.glob("overlays/*/secrets.env.example"):
        assert not re.search(r"^\w+=\S", example.read_text(encoding="utf-8"), re.MULTILINE)
        assert subprocess.run(["git", "check-ignore", "-q", example.with_suffix("")], cwd=ROOT).returncode == 0


def test_every_probe_and_every_scraped_path_is_a_route(documents: list[Document]) -> None:
    asked = set()
    for container in containers(documents):
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            way = container.get(probe, {})
            place = way.get("httpGet") or way.get("tcpSocket")
            if place is not None:
                assert place["port"] in ports
            if "httpGet" in way:
                asked.add(way["httpGet"]["path"])
    assert {"/health/live", "/health/ready"} <= asked
    for monitor in of_kind(documents, "ServiceMonitor"):
        asked |= {endpoint["path"] for endpoint in monitor["spec"]["endpoints"]}
    open_to_all = {each.path for each in OPERATIONS.values() if each.method == "GET"}
    assert asked <= open_to_all


def test_our_containers_listen_where_the_settings_say(documents: list[Document]) -> None:
    port = int(next(each["data"]["PORT"] for each in of_kind(documents, "ConfigMap") if "PORT" in each["data"]))
    assert port == Settings.model_fields["PORT"].default
    for container in containers(documents):
        found = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
        if container["name"] in ("control-plane", "replica"):
            assert found.get("page", port + 1) == port + 1
            assert found["http"] == port


def test_services_policies_and_budgets_mean_pods_that_exist(documents: list[Document]) -> None:
    labels = [pod["metadata"]["labels"] for document in documents for pod in pods(document)]
    names = {each["app.kubernetes.io/name"] for each in labels}

    def means(selector: Mapping[str, Any]) -> set[str]:
        plain = selector.get("matchLabels", {})
        found = {plain["app.kubernetes.io/name"]} if "app.kubernetes.io/name" in plain else set()
        return found | {value for each in selector.get("matchExpressions", ()) for value in each["values"]}

    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            (name,) = means({"matchLabels": spec["selector"]})
            served = [
                port["name"] for each in documents for pod in pods(each)
                if pod["metadata"]["labels"]["app.kubernetes.io/name"] == name
                for container in pod["spec"]["containers"] for port in container["ports"]
            ]  # fmt: skip
            assert {port["targetPort"] for port in spec["ports"]} <= set(served)
        if document["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selectors = [spec.get("podSelector", spec.get("selector", {}))]
            ways = [*spec.get("ingress", ()), *spec.get("egress", ())]
            selectors += [
                peer["podSelector"] for way in ways for peer in [*way.get("from", ()), *way.get("to", ())]
                if "podSelector" in peer
            ]  # fmt: skip
            assert set().union(*map(means, selectors)) <= names
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler")
    scaled = {each["metadata"]["name"] for each in of_kind(documents, "Deployment")}
    assert scaler["spec"]["scaleTargetRef"]["name"] in scaled


def test_one_control_plane_and_never_two(documents: list[Document]) -> None:
    (control,) = (each for each in of_kind(documents, "StatefulSet") if each["metadata"]["name"] == "control-plane")
    assert control["spec"]["replicas"] == 1
    (claim,) = control["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_no_pod_of_ours_runs_as_root_or_changes_its_own_files(documents: list[Document]) -> None:
    for document in documents:
        for pod in pods(document):
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            assert pod["spec"]["securityContext"]["runAsUser"] > 0
            for container in pod["spec"]["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert "memory" in container["resources"]["limits"]


def test_every_image_is_a_target_of_the_dockerfile(documents: list[Document]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^FROM \S+ AS ([\w-]+)$", dockerfile, re.MULTILINE))
    found = {each["name"]: each["image"].rpartition(":") for each in containers(documents)}
    for name, tags in OURS.items():
        if name in found:
            assert found[name][0] == "ml-workbench"
            assert found[name][2] in tags
            assert found[name][2] in targets


def test_volumes_that_are_mounted_are_there(documents: list[Document]) -> None:
    claims = {each["metadata"]["name"] for each in of_kind(documents, "PersistentVolumeClaim")}
    for document in documents:
        of_set = {each["metadata"]["name"] for each in document.get("spec", {}).get("volumeClaimTemplates", ())}
        for pod in pods(document):
            volumes = pod["spec"].get("volumes", [])
            mounted = {mount["name"] for each in pod["spec"]["containers"] for mount in each.get("volumeMounts", ())}
            assert mounted == {each["name"] for each in volumes} | of_set
            wanted = {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each}
            assert wanted <= claims


def test_every_metric_is_one_that_the_service_shows() -> None:
    metrics = Metrics()
    metrics.watch_line(InferenceLine(lambda questions: questions))
    shown = set(re.findall(r"^(ml_workbench_\w+)", generate_latest(metrics.registry).decode(), re.MULTILINE))
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.yaml"))
    made_here = set(re.findall(r"as: (ml_workbench_\w+)", text))
    named = set(re.findall(r"\bml_workbench_\w+", text))
    assert made_here < named
    assert named - made_here <= shown
