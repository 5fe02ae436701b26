"""Cards of earlier rules, read by those of today."""

import pytest

from tests.integrations.model_cards import model_card


@pytest.mark.parametrize(
    ("verdict", "status", "rules", "reads", "proof"),
    [
        ("skill", "passed", 1, "skill", "recomputed"),
        ("skill", "unprovable", 1, "unverified", None),
        ("skill", None, 1, "unverified", None),
        ("skill", "failed", 1, "leak", None),
        ("no_skill", "failed", 1, "leak", None),
        ("no_skill", "unprovable", 1, "no_skill", None),
        ("not_applicable", "failed", 1, "not_applicable", None),
        ("skill", "unprovable", 2, "skill", None),
    ],
)
def test_a_verdict_reads_as_todays_rules_have_it(
    verdict: str, status: str | None, rules: int, reads: str, proof: str | None
) -> None:
    evaluation = {
        "test": {}, "baselines": {}, "skill": {}, "verdict": verdict, "reason": "so it was", "verdict_rules": rules,
    }  # fmt: skip
    certificate = None if status is None else {"status": status, "checks": []}
    card = model_card(evaluation=evaluation, certificate=certificate)
    read = card.by_current_rules()
    assert (read.evaluation.verdict, read.evaluation.proof) == (reads, proof)
    assert read.evaluation.reason.endswith("so it was")
    assert read.evaluation.verdict_rules == rules
    assert read.by_current_rules() == read
    assert card.evaluation.verdict == verdict
