"""Hyper-parameters are numbers as they are written: over every numeric one of every family."""

from typing import Any, get_args

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service import families as families  # loading the package registers every family
from ml_workbench_service.contracts.strict_numbers import NO_NUMBER, TOO_SMALL
from ml_workbench_service.learning.interfaces.family import Family


def leaves(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return set().union(*map(leaves, inner)) if inner else {annotation}


NUMERIC = sorted(
    (family, name)
    for family, kind in Family.known.items()
    for name, field in kind.Hyperparameters.model_fields.items()
    if leaves(field.annotation) & {int, float} and bool not in leaves(field.annotation)
)


def refused(family: str, name: str, value: object) -> list[tuple[str, str]]:
    with pytest.raises(DataValidationError) as error:
        Family.known[family]({name: value})
    return [(each["path"], each["message"]) for each in error.value.details["errors"]]


@pytest.mark.parametrize(("family", "name"), NUMERIC)
def test_what_only_looks_like_a_number_is_refused_at_its_place(family: str, name: str) -> None:
    place = f"body.hyperparameters.{name}"
    for value in (True, False, "2", "0.5", "1e3", "nan", " 7 "):
        assert refused(family, name, value) == [(place, NO_NUMBER)], value
    assert refused(family, name, 5e-324) == [(place, TOO_SMALL)]
    assert refused(family, name, -1e-310) == [(place, TOO_SMALL)]


@pytest.mark.parametrize("family", sorted(Family.known))
def test_a_familys_own_defaults_are_numbers_as_they_are_written(family: str) -> None:
    plain = Family.known[family]({}).hyperparameters.model_dump()
    assert Family.known[family](plain).hyperparameters.model_dump() == plain


def test_every_family_has_numbers_to_try() -> None:
    assert {family for family, _ in NUMERIC} == set(Family.known)
    assert len(NUMERIC) > 50
