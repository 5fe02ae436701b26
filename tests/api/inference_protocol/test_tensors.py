"""Tensors in JSON and as bytes: what goes in comes out, and what no tensor is, is refused and no fault."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.tensors import DTYPES, Tensor, of_bytes, of_json

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.dictionaries(
        st.text(max_size=2), st.integers(), max_size=1)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
shapes = st.lists(st.integers(1, 2**53), max_size=8) | st.lists(st.integers(1, 3), max_size=3)
datatypes = st.sampled_from([*DTYPES, "BYTES"])


@given(datatypes, shapes, st.lists(values, max_size=6))
def test_whatever_stands_in_json_is_a_tensor_or_refused(datatype: Any, shape: list[int], data: list[Any]) -> None:
    try:
        found = of_json("a", datatype, shape, data)
    except DataValidationError:
        return
    assert of_bytes("a", datatype, shape, found.raw()).raw() == found.raw()
    if datatype not in ("BYTES", "BOOL"):
        assert found.numbers.shape == tuple(shape)


@given(datatypes, shapes, st.binary(max_size=64))
def test_whatever_bytes_come_are_a_tensor_or_refused(datatype: Any, shape: list[int], data: bytes) -> None:
    try:
        found = of_bytes("a", datatype, shape, data)
    except DataValidationError:
        return
    if datatype != "BOOL":  # of which any byte but zero is true
        assert found.raw() == data


@given(st.lists(st.text(), min_size=1))
def test_texts_come_out_as_they_went_in(texts: list[str]) -> None:
    tensor = Tensor("a", "BYTES", (len(texts),), texts)
    try:
        raw = tensor.raw()
    except UnicodeEncodeError:  # a lone surrogate, which no JSON body holds
        return
    assert of_bytes("a", "BYTES", [len(texts)], raw).texts == texts


@pytest.mark.parametrize(
    ("datatype", "data"), [("UINT8", [256]), ("INT8", [-129]), ("INT32", [2**31]), ("INT64", [2**64]), ("UINT8", [-1])]
)
def test_a_number_that_its_datatype_does_not_hold_is_refused(datatype: Any, data: list[int]) -> None:
    with pytest.raises(DataValidationError):
        of_json("a", datatype, [1], data)


def test_numbers_that_are_none_are_null_in_json() -> None:
    tensor = Tensor("a", "FP64", (3,), np.array([1.5, np.nan, np.inf]))
    assert tensor.plain() == [1.5, None, None]
