"""Checkpoints: torn, changed or another one's, a training's is ignored and an agent's refused; what is gone on from is
what was saved."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from chaos.damage.damages import DAMAGES
from chaos.parsers.promise import mutations, promise
from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.checkpoint import Checkpoint as AgentCheckpoint
from ml_workbench_service.learning.interfaces.checkpoint import CHECKPOINT_FILE, Checkpoint

FACTS = {"data": "sha256:ab", "family": "lstm", "seed": 3, "hyperparameters": {"units": 8, "rate": 0.1}}
OTHERS = (FACTS, {**FACTS, "seed": 4}, {**FACTS, "hyperparameters": {"units": 8, "rate": 0.1, "more": None}}, {})
ARRAYS = {
    "w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.array([np.nan, 1e-310, -0.0]),
    "n": np.array([2**63 - 1]),
    "empty": np.zeros((0, 4), np.int64), "state": np.frombuffer(bytes(range(256)), np.uint8),
}  # fmt: skip
STATE = {"epoch": 4, "best": 0.1 + 0.2, "rng": {"state": 2**120}}
DOCUMENTS = (
    "", "{", "5", "[]", "{}", "[" * 5000, '{"a":' * 5000, '{"format": 1, "digest": ""}',
    '{"format": 1e999, "digest": 0}', '{"format": 1, "digest": "", "fingerprint": [], "state": 0}', "\ud7ff\0",
)  # fmt: skip


@promise(
    "checkpoints of trainings",
    st.tuples(
        st.lists(st.tuples(st.sampled_from(sorted(DAMAGES)), st.integers(0, 2**32 - 1)), max_size=3),
        st.integers(0, len(OTHERS) - 1),
        st.integers(0, len(OTHERS) - 1),
    ),
)
def changed(case: tuple[list[tuple[str, int]], int, int]) -> None:
    """To the bit what this very training saved, or none; and the next save is there again."""
    damages, saved_by, read_by = case
    with tempfile.TemporaryDirectory() as name:
        assert Checkpoint(Path(name), fingerprint=OTHERS[saved_by]).save(ARRAYS, STATE)
        file = Path(name, CHECKPOINT_FILE)
        content = file.read_bytes()
        for kind, seed in damages:
            content = DAMAGES[kind](content, Random(seed)) if content else content
        is_whole = content == file.read_bytes()
        file.write_bytes(content)
        reader = Checkpoint(Path(name), fingerprint=OTHERS[read_by])
        found = reader.load()
        if found is None:
            assert not is_whole or OTHERS[read_by] != OTHERS[saved_by]
        else:
            assert OTHERS[read_by] == OTHERS[saved_by]
            assert found.state == STATE
            assert {key: (each.dtype, each.shape, each.tobytes()) for key, each in found.arrays.items()} == {
                key: (each.dtype, each.shape, each.tobytes()) for key, each in ARRAYS.items()
            }
        assert reader.save({}, {"epoch": 5})
        again = reader.load()
        assert again is not None
        assert again.state == {"epoch": 5}


@promise("checkpoints of strangers", st.sampled_from(DOCUMENTS) | st.text(max_size=60))
def strange(document: str) -> None:
    """A file of arrays with somebody else's words in it is none of ours."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, CHECKPOINT_FILE).write_bytes(save({"w": np.ones(2)}, metadata={"document": document}))
        assert Checkpoint(Path(name), fingerprint=FACTS).load() is None


def _agent() -> bytes:
    made = AgentCheckpoint(
        agent_id="a", mode="learn", costs=None, lanes={}, positions={}, last_applied_id="1-0",
        values_SA=[[0.5, -1.0, 1e-300]] * 6, visits_SA=[[1, 2, 3]] * 6, random_state={"state": 2**100},
        saved_at=datetime(2025, 3, 3, tzinfo=UTC),
    )  # fmt: skip
    return made.model_dump_json().encode()


@promise(
    "checkpoints of agents", mutations([_agent()]) | st.binary(max_size=60) | st.sampled_from(DOCUMENTS).map(str.encode)
)
def agents(content: bytes) -> None:
    """An agent's state, or a sentence that names the file; it is never begun anew by itself."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, "checkpoint.3.json").write_bytes(content)
        try:
            found = AgentCheckpoint.load(Path(name))
        except DataValidationError as error:
            assert "checkpoint.3.json" in error.message
            return
    assert found is not None
    assert json.loads(found.model_dump_json())["saved_at"]
