"""The short form of `python -m chaos.parsers`: every promise of every parser over a few cases, always the same ones."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from chaos.parsers import load
from chaos.parsers.promise import PROMISES
from common_lib.exceptions import BundleDamagedError, DataValidationError
from ml_workbench_service.agents.checkpoint import Checkpoint as AgentCheckpoint
from ml_workbench_service.api.inference_protocol.http_bodies import read_body, wanted_of
from ml_workbench_service.contracts.strict_numbers import whole_number
from ml_workbench_service.contracts.tensors import of_json, of_values
from ml_workbench_service.integrations.feature_store.bar_formats import read_bars
from ml_workbench_service.learning.bundle.manifest import MANIFEST_FILE, listed_in, verify
from ml_workbench_service.learning.interfaces.checkpoint import CHECKPOINT_FILE, Checkpoint

load()
NUM_CASES = 30
DEEP = b"[" * 5000
"""JSON that Python's reader ends with a RecursionError, which is no ValueError."""


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_every_promise_holds_over_some_cases(name: str) -> None:
    assert PROMISES[name].run(NUM_CASES) > NUM_CASES // 3


def test_a_promise_that_is_broken_is_told_with_its_smallest_case() -> None:
    def check(body: tuple[bytes, int]) -> None:
        assert len(body[0]) < 5

    broken = type(PROMISES["batches in Arrow: any bytes"])(
        "made up", PROMISES["batches in Arrow: any bytes"].cases, check
    )
    with pytest.raises(AssertionError) as told:
        broken.run(200)
    assert any("case=" in note for note in told.value.__notes__)


@pytest.mark.parametrize("content", [DEEP, b'{"a":' * 5000, b"[]", b"null", b'{"files": []}'])
def test_a_manifest_that_makes_no_sense_is_a_bundle_set_aside(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are another's
        listed_in(content)
    folder = tmp_path / "model" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=r"model/1\.0\.0 cannot be read"):
        verify(folder)


@pytest.mark.parametrize("content", [DEEP, b'{"format": 1e999}', b"[]"])
def test_a_checkpoint_of_an_agent_that_makes_no_sense_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.3.json").write_bytes(content)
    with pytest.raises(DataValidationError, match=r"checkpoint\.3\.json"):
        AgentCheckpoint.load(tmp_path)


def test_a_checkpoint_of_a_training_whose_words_are_nested_without_end_is_ignored(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(save({"w": np.ones(2)}, metadata={"document": DEEP.decode()}))
    assert Checkpoint(tmp_path, fingerprint={}).load() is None


def test_a_packed_file_that_cannot_be_unpacked_is_refused_by_name(tmp_path: Path) -> None:
    packed = gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20  # a block of a kind that there is not
    with pytest.raises(zlib.error):
        gzip.decompress(packed)
    (tmp_path / "EURUSD_1h.csv.gz").write_bytes(packed)
    with pytest.raises(DataValidationError, match=r"EURUSD_1h\.csv\.gz: cannot be read as bars"):
        read_bars(tmp_path / "EURUSD_1h.csv.gz")


@pytest.mark.parametrize(
    ("text", "number"),
    [("17", 17), ("007", 7), (b"17", 17), ("", None), ("²", None), ("٣", None), ("9" * 5000, None), ("-1", None)],
)
def test_a_whole_number_is_written_in_ascii_digits(text: Any, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("length", ["9" * 5000, "²", "٣", "-1", "3.0", ""])
def test_a_length_of_the_json_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(DataValidationError, match="Inference-Header-Content-Length is how many bytes"):
        read_body(b"{}", length)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP64", [2], [True, 2.0]), ("INT64", [2], [1, True]), ("FP64", [1], ["2"]), ("BOOL", [2], [True, 1]),
        ("INT64", [1], [1.0]), ("FP64", [1], [None]), ("FP64", [3, 2], [[1, 2, 3], [4, 5, 6]]),
        ("FP64", [6], [[1, 2, 3], [4, 5, 6]]), ("FP64", [2, 2], [[1, 2], 3, 4]), ("FP64", [1], [[[1]]]),
        ("BYTES", [2], [["a", "b"]]), ("FP64", [1], [float("nan")]), ("FP64", [1], [float("inf")]),
        ("FP32", [1], [1e300]), ("FP64", [1], [10**400]),
    ],
)  # fmt: skip
def test_values_that_are_not_what_is_said_of_them_are_refused(datatype: Any, shape: list[int], data: Any) -> None:
    with pytest.raises(DataValidationError, match="x"):
        of_json("x", datatype, shape, data)


def test_large_whole_numbers_and_small_ones_stand_beside_each_other() -> None:
    found = of_json("x", "UINT64", [2], [2**64 - 1, 0]).values
    assert found.tolist() == [2**64 - 1, 0]  # type: ignore[union-attr]
    assert of_json("x", "FP64", [2, 2], [[1, 2.5], [5e-324, -3]]).numbers.tolist() == [[1.0, 2.5], [5e-324, -3.0]]


def test_what_is_not_a_number_is_one_that_was_not_said_where_values_come_in_binary() -> None:
    assert np.isnan(of_values("price", "FP64", [1], [float("nan")]).numbers).all()


@pytest.mark.parametrize("shape", [[True], ["2"], [2.5]])
def test_a_dimension_is_a_whole_number(shape: list[Any]) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": shape, "data": [1]}]}).encode()
    with pytest.raises(DataValidationError, match="shape"):
        wanted_of("small", None, *read_body(body, None))
