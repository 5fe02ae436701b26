"""The gates about skill and leaks: what warns, what refuses, and what nobody can pass by force."""

import json
from dataclasses import replace
from typing import Any

import pytest

from common_lib.exceptions import DataValidationError, GateFailedError
from ml_workbench_service.contracts.deployment import Deployment, DeployRequest
from ml_workbench_service.learning.bundle.manifest import write_manifest
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows.deploy import Sender, deploy, rollback
from tests.workflows.conftest import OpenBench

FAILED = {
    "status": "failed",
    "checks": [
        {"name": "features", "status": "failed", "detail": "sma_20 moved before the bars that changed"},
        {"name": "labels", "status": "passed", "detail": "nothing moved"},
    ],
}


def bench_with(
    open_bench: OpenBench, *versions: str, verdict: str, certificate: dict[str, Any] | None = None
) -> Workbench:
    """Version 1.0.0 of `small` whose card says so, and further ones as they come; its files are whole."""
    bench = open_bench(*(versions or ("1.0.0",)))
    folder = bench.registry.folder("small", "1.0.0")
    card = json.loads((folder / "card.json").read_text())
    card["evaluation"] |= {"verdict": verdict, "reason": "so it was judged"}
    card["certificate"] = certificate
    (folder / "card.json").write_text(json.dumps(card))
    write_manifest(folder)
    return bench


def go(bench: Workbench, **changes: Any) -> Deployment:
    """Deploys it locally."""
    request = DeployRequest.model_validate({"version": "1.0.0", "deployment_target": "local", **changes})
    return deploy(bench, "small", request, Sender(deployment_id="one", correlation_id="corr"))


def test_a_model_with_skill_passes_without_a_warning(open_bench: OpenBench) -> None:
    bench = replace(bench_with(open_bench, verdict="skill"), enforces_skill=True)
    done = go(bench)
    assert done.status == "live"
    assert "no_proven_skill" not in done.warnings
    assert [(each.gate, each.passed) for each in done.gate_results][-1] == ("skill", True)


@pytest.mark.parametrize("verdict", ["no_skill", "insufficient_data", "not_applicable", "not_judged"])
def test_without_proven_skill_it_warns_and_goes_live(open_bench: OpenBench, verdict: str) -> None:
    done = go(bench_with(open_bench, verdict=verdict))
    assert done.status == "live"
    assert "no_proven_skill" in done.warnings
    assert done.gate_results[-1].value == f"{verdict}: so it was judged"
    assert (done.gate_results[-1].passed, done.gate_results[-1].enforced) == (False, False)


def test_the_request_enforces_it_and_the_refusal_says_what_to_do(open_bench: OpenBench) -> None:
    bench = bench_with(open_bench, verdict="no_skill")
    with pytest.raises(GateFailedError, match="did not pass: skill; train on more data") as caught:
        go(bench, gates={"skill": True})
    assert [gate["gate"] for gate in caught.value.details["gates"] if not gate["passed"]] == ["skill"]
    assert bench.history.of("small") == []


def test_the_setting_enforces_it_a_request_may_lift_it_and_so_may_force(open_bench: OpenBench) -> None:
    bench = replace(bench_with(open_bench, verdict="no_skill"), enforces_skill=True)
    with pytest.raises(GateFailedError, match="skill"):
        go(bench)
    assert go(bench, gates={"skill": False}).status == "live"


def test_force_passes_the_setting_and_still_warns(open_bench: OpenBench) -> None:
    bench = replace(bench_with(open_bench, verdict="no_skill"), enforces_skill=True)
    assert "no_proven_skill" in go(bench, force=True).warnings


def test_a_rollback_goes_back_to_what_was_forced_live(open_bench: OpenBench) -> None:
    bench = replace(bench_with(open_bench, "1.0.0", "1.1.0", verdict="no_skill"), enforces_skill=True)
    go(bench, force=True)
    newer = DeployRequest.model_validate({"version": "1.1.0", "deployment_target": "local", "force": True})
    deploy(bench, "small", newer, Sender(deployment_id="two", correlation_id="corr"))
    back = rollback(bench, "two", Sender(deployment_id="three", correlation_id="corr"))
    assert (back.version, back.status) == ("1.0.0", "live")
    assert "no_proven_skill" in back.warnings


def test_a_failed_certificate_is_passed_by_nobody(open_bench: OpenBench) -> None:
    bench = bench_with(open_bench, verdict="no_skill", certificate=FAILED)
    for changes in ({}, {"force": True}):
        with pytest.raises(GateFailedError, match="leakage_certificate; its figures knew the future") as caught:
            go(bench, **changes)
        (found,) = (gate for gate in caught.value.details["gates"] if gate["gate"] == "leakage_certificate")
        assert found["value"] == "failed: sma_20 moved before the bars that changed"
    with pytest.raises(DataValidationError, match="always enforced"):
        go(bench, gates={"leakage_certificate": False})


def test_an_unprovable_certificate_passes(open_bench: OpenBench) -> None:
    unprovable = {"status": "unprovable", "checks": []}
    done = go(bench_with(open_bench, verdict="skill", certificate=unprovable))
    assert [each.value for each in done.gate_results if each.gate == "leakage_certificate"] == ["unprovable"]
