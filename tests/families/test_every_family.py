"""Every registered family under the conformance suite: a new file in `families/` is under it without a line here."""

from typing import Any

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, families_of, family_for
from ml_workbench_service.testing.families import AnyFamilyConformance, FamilyConformance

for _name, _kind in Family.known.items():
    _suite = AnyFamilyConformance if _kind.model_type is ModelType.FEATURE_ENGINEERING else FamilyConformance
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (_suite,), {"family": _kind})


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


@pytest.mark.parametrize("missing", ["name", "min_window", "Hyperparameters", "docstring", "lookback", "twin"])
def test_an_ill_formed_family_fails_where_it_is_defined(missing: str) -> None:
    good = next(iter(Family.known.values()))
    body: dict[str, Any] = {
        "name": "ill_formed",
        "model_type": good.model_type,
        "min_window": 3,
        "Hyperparameters": good.Hyperparameters,
        "__doc__": "A family.",
        "__module__": __name__,
    }
    if missing == "twin":
        body["name"] = good.name
    elif missing == "lookback":
        body["Hyperparameters"] = type("None_", (good.Hyperparameters.__base__.__base__,), {"__module__": __name__})
    else:
        body.pop("__doc__" if missing == "docstring" else missing)
    before = dict(Family.known)
    with pytest.raises(TypeError, match=missing if missing not in ("twin",) else "two families"):
        type("IllFormed", (Family,), body)
    assert Family.known == before
