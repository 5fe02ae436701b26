"""The network's word on a run of questions, as arrays.

Legend: M questions that the network was asked, T rows, F features, K outputs, 4 positions: the one named, -1, 0 and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.prediction import ActionsByPosition
from ml_workbench_service.market.trading_series import POSITIONS
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import NetworkOutput, next_actions
from ml_workbench_service.serving.runs.questions import QuestionRun, WindowGroup

WINDOWS_AT_ONCE = 64
"""Of one run of the network: what it works on stays in the processor's caches."""


@dataclass(frozen=True)
class NetworkRun:
    """What the network said.

    Attributes:
        places_M: whose questions it was asked.
        actions_M: of a policy, what it says to each position that may be held.
    """

    places_M: Ints
    outputs_MK: Floats32
    last_rows_MF: Floats32
    actions_M: Sequence[ActionsByPosition] | None = None

    def output(self, row: int) -> NetworkOutput:
        """To one of them."""
        actions = None if self.actions_M is None else self.actions_M[row]
        return NetworkOutput(self.outputs_MK[row], self.last_rows_MF[row], actions)


def ask_run(model: ServedModel, run: QuestionRun) -> NetworkRun:
    """The float32 network's, windows of one length together; rows do not change each other's bits.

    A policy reads each window four times: for the position that the question names, and for -1, 0 and 1.
    """
    found = [_asked(model, run, part) for group in run.groups for part in _parts(group)]
    if not found:
        num, none = len(model.card.features), np.zeros(0, dtype=np.int64)
        return NetworkRun(none, np.zeros((0, 0), dtype=np.float32), np.zeros((0, num), dtype=np.float32))
    if len(found) == 1:
        return found[0]
    actions = [action for each in found if each.actions_M is not None for action in each.actions_M]
    return NetworkRun(
        np.concatenate([each.places_M for each in found]),
        np.concatenate([each.outputs_MK for each in found]),
        np.concatenate([each.last_rows_MF for each in found]),
        actions if model.decoder.holds_positions else None,
    )


def _parts(group: WindowGroup) -> list[WindowGroup]:
    return [
        WindowGroup(group.places[begin : begin + WINDOWS_AT_ONCE], group.rows_NTF[begin : begin + WINDOWS_AT_ONCE])
        for begin in range(0, len(group.places), WINDOWS_AT_ONCE)
    ]


def _asked(model: ServedModel, run: QuestionRun, group: WindowGroup) -> NetworkRun:
    if not model.decoder.holds_positions:
        raw = model.float32.predict(group.rows_NTF, None)
        return NetworkRun(group.places, raw.outputs_NK, raw.last_rows_NF)
    held_M1 = run.position_N[group.places].astype(np.float32)[:, None]
    positions_M4 = np.hstack([held_M1, np.tile(np.array(POSITIONS, dtype=np.float32), (len(held_M1), 1))])
    raw = model.float32.predict(np.repeat(group.rows_NTF, 4, axis=0), positions_M4.reshape(-1))
    outputs_M4K = raw.outputs_NK.reshape(*positions_M4.shape, -1)
    actions = [next_actions(model, outputs_4K[1:]) for outputs_4K in outputs_M4K]
    return NetworkRun(group.places, outputs_M4K[:, 0], raw.last_rows_NF[::4], actions)
