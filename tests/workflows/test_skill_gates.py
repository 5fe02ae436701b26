"""The gates about skill and leaks: what warns, what refuses, and what nobody can pass by force."""

import json
from dataclasses import replace
from typing import Any

import pytest

from common_lib.exceptions import DataValidationError, GateFailedError, StateDamagedError
from ml_workbench_service.api.health import live_models
from ml_workbench_service.api.models import summary
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.deployment import Deployment, DeployRequest, GateResult
from ml_workbench_service.contracts.outcomes import LiveVerdict
from ml_workbench_service.learning.bundle.signatures import RECORD_FILE
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows.deploy import Sender, deploy, rollback
from tests.integrations.bundles import publish_anew
from tests.workflows.conftest import OpenBench

FAILED = {
    "status": "failed",
    "checks": [
        {"name": "features", "status": "failed", "detail": "sma_20 moved before the bars that changed"},
        {"name": "labels", "status": "passed", "detail": "nothing moved"},
    ],
}


PASSED = {"status": "passed", "checks": [], "proof": "recomputed"}
DECLARED = {"status": "passed", "checks": [], "proof": "declared", "declared_columns": ["mood", "news"]}
UNPROVABLE = {"status": "unprovable", "checks": []}


def bench_with(
    open_bench: OpenBench,
    *versions: str,
    verdict: str,
    certificate: dict[str, Any] | None = None,
    proof: str | None = None,
    rules: int = 2,
) -> Workbench:
    """Version 1.0.0 of `small` whose card says so, and further ones as they come; its files are whole."""
    bench = open_bench(*(versions or ("1.0.0",)))
    folder = bench.registry.folder("small", "1.0.0")
    card = json.loads((folder / "card.json").read_text())
    card["evaluation"] |= {"verdict": verdict, "reason": "so it was judged", "proof": proof, "verdict_rules": rules}
    card["certificate"] = certificate
    (folder / "card.json").write_text(json.dumps(card))
    publish_anew(folder)
    return bench


def go(bench: Workbench, **changes: Any) -> Deployment:
    """Deploys it locally."""
    request = DeployRequest.model_validate({"version": "1.0.0", "deployment_target": "local", **changes})
    return deploy(bench, "small", request, Sender(deployment_id="one", correlation_id="corr"))


def warned(done: Deployment) -> set[str]:
    """What its verdict warns of."""
    return {each for each in done.warnings if each.startswith(("verdict_", "no_proven", "proof_"))}


@pytest.mark.parametrize("proof", ["recomputed", "witnessed"])
def test_a_model_with_proven_skill_passes_without_a_warning(open_bench: OpenBench, proof: str) -> None:
    bench = replace(bench_with(open_bench, verdict="skill", certificate=PASSED, proof=proof), enforces_skill=True)
    done = go(bench)
    assert done.status == "live"
    assert warned(done) == set()
    assert done.gate_results[-1].value == f"skill ({proof}): so it was judged"
    assert [(each.gate, each.passed) for each in done.gate_results][-1] == ("skill", True)


@pytest.mark.parametrize(
    "verdict", ["no_skill", "insufficient_data", "not_applicable", "not_judged", "implausible", "unverified"]
)
def test_without_proven_skill_it_warns_by_the_verdicts_name_and_goes_live(open_bench: OpenBench, verdict: str) -> None:
    done = go(bench_with(open_bench, verdict=verdict, certificate=UNPROVABLE))
    assert done.status == "live"
    assert warned(done) == {"no_proven_skill", f"verdict_{verdict}"}
    assert done.gate_results[-1].value.startswith(f"{verdict}: so it was judged")
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
    done = go(bench_with(open_bench, verdict="unverified", certificate=UNPROVABLE))
    assert [each.value for each in done.gate_results if each.gate == "leakage_certificate"] == ["unprovable"]


def test_declared_columns_pass_where_the_deployer_names_each_of_them(open_bench: OpenBench) -> None:
    bench = bench_with(open_bench, verdict="skill", certificate=DECLARED, proof="declared")
    bench = replace(bench, enforces_skill=True)
    for named in ([], ["mood"]):
        with pytest.raises(GateFailedError, match="name them in declared_columns"):
            go(bench, declared_columns=named)
    done = go(bench, declared_columns=["news", "mood"])
    assert (done.status, warned(done)) == ("live", {"proof_declared"})


def test_declared_columns_that_nobody_names_warn_where_nothing_is_enforced(open_bench: OpenBench) -> None:
    done = go(bench_with(open_bench, verdict="skill", certificate=DECLARED, proof="declared"))
    assert warned(done) == {"proof_declared", "no_proven_skill"}


def test_an_implausible_model_is_named_or_stays_out_whatever_is_forced(open_bench: OpenBench) -> None:
    bench = replace(bench_with(open_bench, verdict="implausible", certificate=PASSED), enforces_skill=True)
    for changes in ({}, {"force": True}):
        with pytest.raises(GateFailedError, match="accepted_verdict"):
            go(bench, **changes)
    done = go(bench, accepted_verdict="implausible")
    assert (done.status, warned(done)) == ("live", {"verdict_implausible"})


@pytest.mark.parametrize(("live", "passes"), [("skill", True), ("insufficient_data", False)])
def test_an_unverified_model_passes_by_live_evidence_alone(
    open_bench: OpenBench, monkeypatch: pytest.MonkeyPatch, live: str, passes: bool
) -> None:
    from ml_workbench_service.workflows import deploy as workflow

    said = LiveVerdict.model_validate({"verdict": live, "reason": "so it went"})
    monkeypatch.setattr(workflow, "live_verdict", lambda *_: said)  # evidence of months: its own tests gather it
    bench = replace(bench_with(open_bench, verdict="unverified", certificate=UNPROVABLE), enforces_skill=True)
    if not passes:
        with pytest.raises(GateFailedError, match="gather live evidence"):
            go(bench)
        assert warned(go(bench, force=True)) == {"verdict_unverified", "no_proven_skill"}
        return
    done = go(bench)
    assert (done.status, warned(done)) == ("live", set())
    assert done.gate_results[-1].value.endswith(f"live_verdict {live}: so it went")


def test_what_earlier_rules_let_go_live_stays_live_with_a_warning(open_bench: OpenBench) -> None:
    bench = bench_with(open_bench, verdict="skill", certificate=UNPROVABLE, rules=1)
    by_earlier_rules = Deployment(
        id="before", model_id="small", version="1.0.0", deployment_target="local", status="live",
        previous_version=None, created_at=utc_now(), live_at=utc_now(),
        gate_results=(GateResult(gate="skill", value="skill: so it was", limit="", passed=True, enforced=True),),
    )  # fmt: skip
    bench.history.append(by_earlier_rules)
    card = bench.registry.served_card("small")
    assert (card.status, card.evaluation.verdict) == ("deployed", "unverified")
    line = summary(card, bench.history.live("small"))
    assert (line.verdict, line.proof, line.warnings) == ("unverified", None, ("verdict_unverified",))
    thing = live_models(bench)
    assert (thing.state, thing.detail) == ("ok", "small 1.0.0: verdict_unverified")


def test_the_gate_takes_the_services_own_record_and_not_the_cards_word(open_bench: OpenBench) -> None:
    bench = bench_with(open_bench, verdict="no_skill", certificate=PASSED)
    record = bench.state_dir / RECORD_FILE
    before = record.read_bytes()
    folder = bench.registry.folder("small", "1.0.0")
    card = json.loads((folder / "card.json").read_text())
    card["evaluation"] |= {"verdict": "skill", "proof": "recomputed"}
    (folder / "card.json").write_text(json.dumps(card))
    publish_anew(folder)
    lines = record.read_bytes()[len(before) :]
    record.write_bytes(before + lines.replace(b'"verdict":"skill"', b'"verdict":"no_skill"'))
    assert bench.registry.card("small", "1.0.0").evaluation.verdict == "skill"
    with pytest.raises(GateFailedError, match="skill"):
        go(replace(bench, enforces_skill=True))
    record.unlink()
    with pytest.raises(StateDamagedError, match=r"ml-workbench sign small 1\.0\.0"):
        go(bench)
