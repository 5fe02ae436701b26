"""`Checkpoint`: a training's state, to go on with after its process was killed, in one file that is replaced in one
step.

    <folder>/checkpoint.safetensors     arrays by name; in its metadata `document`: format, fingerprint, state, digest
    <folder>/<stage>/                   the same for each training of several (`Checkpoint.stage`)

Law: whoever reads sees a whole checkpoint of this very training, or none. A checkpoint of other data, other
hyper-parameters, another seed or other library versions is ignored with a sentence in the log that names what differs;
so is a torn or foreign file. Nothing about a checkpoint ever fails a training: it then costs the time that it would
have saved. Arrays and JSON alone, never code.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common_lib.storage import make_folder
from ml_workbench_service.jobs.guarded_reading import json_object

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT = 1
PERIOD_S = 5.0
MOST_OF_TIME = 0.01
"""Saving takes at most this share of the time: a save of 0.2 s is followed by 20 s without one."""
LIBRARIES = ("torch", "numpy")
"""Those whose version decides what a seed leads to."""

log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A checkpoint as it was saved."""

    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


class Checkpoint:
    """The newest state of one training; one process at a time writes it.

    Args:
        folder: for this training alone (a job's `checkpoint/`, one folder below it for each seed); made when needed.
        fingerprint: what must be the same for a checkpoint to be continued, as JSON: the data's digest, the family, the
            hyper-parameters, the seed, the kind of device. The libraries' versions are added here.
        warn: hears once that checkpoints cannot be written, as a sentence for the user.
        period_s: seconds between two saves, at least; see `due`.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: Mapping[str, Any],
        warn: Callable[[str], None] = log.warning,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        versions = {name: version(name) for name in LIBRARIES}
        self._folder = folder
        self._file = folder / CHECKPOINT_FILE
        self._fingerprint = json.loads(json.dumps({**fingerprint, "versions": versions}))
        self._warn = warn
        self._has_warned = False
        self._period_s = period_s
        self._clock = clock
        self._due_at = clock() + period_s
        self._stages: list[StageCheckpoint] = []

    def stage(self, name: str, **facts: Any) -> "StageCheckpoint":
        """The checkpoint of one training of several, in a folder of this name below; cleared along with this one.

        Args:
            name: the folder's.
            facts: join the fingerprint.
        """
        made = StageCheckpoint(
            self._folder / name,
            fingerprint={**self._fingerprint, **facts},
            warn=self._warn,
            period_s=self._period_s,
            clock=self._clock,
        )
        self._stages.append(made)
        return made

    def due(self) -> bool:
        """Whether it is time to save again; as cheap as a look at the clock, so ask after every batch or epoch."""
        return self._clock() >= self._due_at

    def save(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> bool:
        """Replaces the checkpoint; on return it survives a power cut. False where the disk did not take it.

        Args:
            arrays: weights, moments, random states; any shape and any dtype of numbers or booleans.
            state: everything else, as JSON keeps it: keys are words, tuples come back as lists, floats to the bit.
        """
        begun = self._clock()
        try:
            make_folder(self._folder)
            _replace(self._file, self._encoded(arrays, state))
        except OSError as error:
            self._complain(error)
            return False
        finally:
            now = self._clock()
            self._due_at = now + max(self._period_s, (now - begun) / MOST_OF_TIME)
        return True

    def load(self) -> Saved | None:
        """What was saved last by a training of this fingerprint; None where there is nothing to continue."""
        try:
            saved, fingerprint = _decoded(self._file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("%s cannot be read and is ignored, the training begins anew: %s", self._file, error)
            return None
        names = sorted({*fingerprint, *self._fingerprint})
        differing = [name for name in names if fingerprint.get(name) != self._fingerprint.get(name)]
        if differing:
            words = ", ".join(differing)
            log.warning("%s belongs to another training (%s) and is ignored, this one begins anew", self._file, words)
            return None
        return saved

    def clear(self) -> None:
        """Removes it: the training is done, or shall begin anew."""
        for stage in self._stages:
            stage.clear()
        for file in (self._file, _staged(self._file)):
            file.unlink(missing_ok=True)

    def _encoded(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> bytes:
        whole = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        document = {"format": FORMAT, "fingerprint": self._fingerprint, "state": dict(state)}
        document["digest"] = _digest(whole, document)
        payload: bytes = save(whole, metadata={"document": json.dumps(document)})
        return payload

    def _complain(self, error: OSError) -> None:
        """Once: a full disk stays full for a while."""
        if self._has_warned:
            return
        self._has_warned = True
        self._warn(
            f"The training's progress cannot be kept on disk ({error.strerror or error}): it goes on, but begins anew "
            "should its process be killed. Free some space under STATE_DIR."
        )


class StageCheckpoint(Checkpoint):
    """Of one training of several: it also keeps how the training ended, so that a finished one is not repeated.

    A training that begins with the state after its last epoch has nothing left to do, and hands over the same weights.
    So the newest state is held in memory, one copy of it, until `finish` writes it; before that it is written when due.
    """

    _newest: tuple[Mapping[str, np.ndarray], Mapping[str, Any]] | None = None

    def due(self) -> bool:
        """Always: every state may be the last."""
        return True

    def save(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> bool:
        """Holds the state, and replaces the checkpoint where it is time to."""
        if not super().due():
            self._newest = arrays, state
            return True
        self._newest = None
        return super().save(arrays, state)

    def finish(self) -> None:
        """Writes the newest state, if it is not on disk: the training is over."""
        if self._newest is not None:
            super().save(*self._newest)
        self._newest = None


def _decoded(file: Path) -> tuple[Saved, dict[str, Any]]:
    """The checkpoint in the file and its fingerprint; raises where any byte is not what was saved."""
    payload = file.read_bytes()  # not mapped: a disk that fails is then an error, where a map would be a SIGBUS
    arrays = load(payload)
    header = json_object(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    document = json_object(header["__metadata__"]["document"])
    digest = document.pop("digest")
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']!r} and this version reads {FORMAT}")
    if digest != _digest(arrays, document):
        raise ValueError("its digest does not match")
    return Saved(arrays, document["state"]), document["fingerprint"]


def _digest(arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _staged(file: Path) -> Path:
    return file.with_name(f".{file.name}")


def _replace(file: Path, payload: bytes) -> None:
    """The file whole or not at all; the old one stays where the disk is full, and nothing half-written beside it."""
    staged = _staged(file)
    try:
        with staged.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(file)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
