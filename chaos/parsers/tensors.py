"""Tensors of the Open Inference Protocol, in JSON and as bytes behind it: decoded as they were sent, or refused.

Numbers are numbers as they are written; nested values have the shape that is said of them.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from chaos.parsers.promise import mutations, promise
from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.inference_protocol.http_bodies import read_body, wanted_of, write_body
from ml_workbench_service.api.inference_protocol.inference import Inferred
from ml_workbench_service.contracts.tensors import DTYPES, Tensor

NUMBERS = [*DTYPES]
SHAPES = st.lists(st.integers(1, 4), max_size=3)
LEAVES = st.sampled_from(["true", "null", '"2"', "NaN", "Infinity", "-1", "1e999", "5e-324", "1.5", "[]", "{}", "01"])
HEADERS = st.none() | st.integers(0, 200).map(str) | st.sampled_from(["", "-1", "1e2", "\u0663", "9" * 5000, " 7"])


def _tensor(case: tuple[str, list[int], int]) -> tuple[dict[str, Any], Tensor]:
    """A tensor as JSON says it and what it is."""
    datatype, shape, seed = case
    chance = np.random.default_rng(seed)
    dtype, num = DTYPES[datatype], int(np.prod(shape, dtype=np.int64))
    if dtype.kind == "b":
        values = chance.random(num) < 0.5
    elif dtype.kind == "f":
        values = chance.normal(0, 100, num).astype(dtype)
    else:
        bounds = np.iinfo(dtype)
        values = chance.integers(bounds.min, bounds.max, num, dtype=dtype, endpoint=True)
    values = values.reshape(shape)
    data = values.tolist() if chance.random() < 0.5 else values.reshape(-1).tolist()
    plain = {"name": "x", "datatype": datatype, "shape": shape, "data": data if isinstance(data, list) else [data]}
    return plain, Tensor("x", datatype, tuple(shape), values)  # type: ignore[arg-type]


TENSORS = st.tuples(st.sampled_from(NUMBERS), SHAPES, st.integers(0, 2**32 - 1)).map(_tensor)


def _body(tensors: Sequence[dict[str, Any]], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


VALID = [
    _body(
        [_tensor((datatype, [2, 3], 1))[0]],
        parameters={"symbol": "EUR/USD", "price": 1.5},
        outputs=[{"name": "prediction"}],
    )
    for datatype in ("FP64", "INT8", "BOOL")
]
BEHIND = _body([{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}])


@promise(
    "tensors: any bytes", st.tuples(st.binary(max_size=100) | mutations([*VALID, BEHIND, BEHIND + bytes(8)]), HEADERS)
)
def any_bytes(case: tuple[bytes, str | None]) -> None:
    """A request whose tensors have as many values as they say, or a sentence."""
    body, header = case
    try:
        request, behind = read_body(body, header)
        wanted = wanted_of("small", None, request, behind)
    except DataValidationError as error:
        assert error.message
        return
    for each in wanted.tensors:
        num = int(np.prod(each.shape, dtype=object))
        assert len(each.texts if each.datatype == "BYTES" else each.values.reshape(-1)) == num  # type: ignore[union-attr]


@promise("tensors: a round trip", st.lists(TENSORS, min_size=1, max_size=4))
def round_trip(case: list[tuple[dict[str, Any], Tensor]]) -> None:
    """In JSON, flat or nested, and as bytes: to the bit what it was, and out again."""
    wanted = [tensor for _, tensor in case]
    bodies = {
        "JSON": (_body([plain for plain, _ in case]), None),
        "bytes": _as_bytes(wanted),
    }
    for how, (body, header) in bodies.items():
        request, behind = read_body(body, header)
        found = wanted_of("small", None, request, behind).tensors
        assert [(each.datatype, each.shape, each.raw()) for each in found] == [
            (each.datatype, each.shape, each.raw()) for each in wanted
        ], how
        for is_binary in (False, True):
            asked = request.model_copy(update={"parameters": {"binary_data_output": is_binary}})
            answer, length = write_body(Inferred("small", "1.0.0", list(found)), asked)
            plain = json.loads(answer[:length])
            assert [tuple(each["shape"]) for each in plain["outputs"]] == [each.shape for each in wanted]
            if is_binary:
                assert answer[length:] == b"".join(each.raw() for each in wanted)


def _as_bytes(tensors: Sequence[Tensor]) -> tuple[bytes, str]:
    described = [
        {
            "name": "x",
            "datatype": each.datatype,
            "shape": list(each.shape),
            "parameters": {"binary_data_size": len(each.raw())},
        }
        for each in tensors
    ]
    plain = _body(described)
    return plain + b"".join(each.raw() for each in tensors), str(len(plain))


@promise(
    "tensors: what is no number",
    st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(-9, 9).map(str), max_size=4), st.integers(0, 4), LEAVES),
)
def no_number(case: tuple[str, list[str], int, str]) -> None:
    """`true`, `"2"`, null, NaN and infinities are no numbers, wherever in a list they stand; 5e-324 in it is one."""
    datatype, numbers, place, leaf = case
    values = [*numbers[:place], leaf, *numbers[place:]]
    told = ",".join(values)
    body = f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[{len(values)}],"data":[{told}]}}]}}'.encode()
    try:
        request, behind = read_body(body, None)
        (found,) = wanted_of("small", None, request, behind).tensors
    except DataValidationError:
        return
    is_number = leaf in ("-1", "5e-324", "1.5") and DTYPES[datatype].kind in "iuf"
    assert is_number or (datatype == "BOOL" and values == ["true"]), (found, body)


@promise(
    "tensors: another shape",
    st.tuples(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.lists(st.integers(1, 6), min_size=1, max_size=3)),
)
def another_shape(case: tuple[list[int], list[int]]) -> None:
    """Nested values are of the shape that is said, and never told anew as another one."""
    nested, said = case
    data = np.arange(int(np.prod(nested))).reshape(nested).tolist()
    body = _body([{"name": "x", "datatype": "INT64", "shape": said, "data": data}])
    request, behind = read_body(body, None)
    try:
        wanted_of("small", None, request, behind)
    except DataValidationError:
        assert nested != said
    else:
        assert nested == said
