"""Every registered family under the conformance suite: a new file in `families/` is under it without a line here."""

import types
from typing import Any

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, families_of, family_for
from ml_workbench_service.testing.families import AnyFamilyConformance, FamilyConformance

for _name, _kind in Family.known.items():
    _suite = AnyFamilyConformance if _kind.model_type is ModelType.FEATURE_ENGINEERING else FamilyConformance
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (_suite,), {"family": _kind})

for _check in (
    AnyFamilyConformance.test_a_seed_decides_every_bit_of_the_weights,
    FamilyConformance.test_its_float32_answers_do_not_depend_on_their_neighbours,
    FamilyConformance.test_its_graph_answers_like_its_network,
    FamilyConformance.test_what_was_saved_answers_the_same,
    FamilyConformance.test_its_int8_stays_within_its_bound_or_is_refused,
):
    pytest.mark.processor(_check)


def test_each_type_has_one_default_and_it_comes_first() -> None:
    for model_type in {kind.model_type for kind in Family.known.values()}:
        kinds = families_of(model_type)
        assert [kind.is_default for kind in kinds] == [True] + [False] * (len(kinds) - 1)
        assert family_for(model_type, None) is kinds[0]


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataValidationError, match=r"did you mean lstm\?"):
        family_for(ModelType.TIME_SERIES, "lsmt")
    with pytest.raises(DataValidationError, match="known: "):
        family_for(ModelType.TIME_SERIES, "?")


class NoLookback(Contract):
    """Hyper-parameters of no window."""


@pytest.mark.parametrize(
    "missing", ["name", "min_window", "Hyperparameters", "type argument", "docstring", "lookback", "two families"]
)
def test_an_ill_formed_family_fails_where_it_is_defined(missing: str) -> None:
    good = Family.known["linear"]
    base: Any = Family[NoLookback if missing == "lookback" else good.Hyperparameters]
    body: dict[str, Any] = {
        "name": good.name if missing == "two families" else "ill_formed",
        "model_type": good.model_type,
        "min_window": 3,
        "__doc__": "A family.",
        "__module__": __name__,
    }
    if missing == "Hyperparameters":
        base = Family
    if missing == "type argument":
        body["Hyperparameters"] = NoLookback
    body.pop("__doc__" if missing == "docstring" else missing, None)
    before = dict(Family.known)
    with pytest.raises(TypeError, match=missing):
        types.new_class("IllFormed", (base,), exec_body=lambda namespace: namespace.update(body))
    assert Family.known == before
