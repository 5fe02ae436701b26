"""`PublishedPrimary`: a published version as meta-labelling asks it: outputs and sides at rows, in batches.

Legend: R rows of one symbol, N windows, T rows of a window, P features of the primary, K outputs of the primary.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common_lib.exceptions import BundleDamagedError
from ml_workbench_service.contracts.market import Costs, Floats, Floats32, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import PrimaryReference
from ml_workbench_service.learning.bundle.manifest import MODEL_FILE, RECIPE_FILE, verify
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.scaling import RowScaler, SymbolScale
from ml_workbench_service.learning.data.window_losses import streaks
from ml_workbench_service.learning.data.windows import SCORING_ROWS, SymbolRows
from ml_workbench_service.learning.decoders.decoder import Decoder, load_decoder
from ml_workbench_service.learning.decoders.follow import stated_sides
from ml_workbench_service.learning.interfaces.family import AnyFamily
from ml_workbench_service.market.class_labels import break_even

KEPT_OF_CARD = {"evaluation": {"test": {}, "baselines": {}, "skill": {}, "verdict": "not_judged", "reason": ""}}
"""Of a primary's card in its follower's recipe: everything but its long evaluation."""


@dataclass(frozen=True)
class PublishedPrimary:
    """A version's float32 network with its scaler and decoder.

    Attributes:
        reference: which it is.
        card: its card.
        scaler: of its features, fitted on its own training part.
        uncertainty: its decoder, as its recipe has it.
        network: its graph, running.
        file: its graph on disk.
    """

    reference: PrimaryReference
    card: ModelCard
    scaler: RowScaler
    uncertainty: Mapping[str, Any]
    network: OnnxNetwork
    file: Path

    @classmethod
    def load(cls, folder: Path, card: ModelCard, reference: PrimaryReference) -> "PublishedPrimary":
        """Verified and opened.

        Raises:
            BundleDamagedError: the bundle is not what it was when the training was planned.
        """
        if verify(folder) != reference.digest:
            raise BundleDamagedError(
                f"the primary {reference.model_id}@{reference.version} is not what it was when this training was "
                "planned; restore it from a backup, or name another one"
            )
        recipe = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        return cls(
            reference, card, RowScaler.from_json(recipe["scaler"]), recipe["uncertainty"],
            OnnxNetwork(folder / MODEL_FILE), folder / MODEL_FILE,
        )  # fmt: skip

    @property
    def lookback(self) -> int:
        """Rows of a whole window."""
        return self.card.lookback

    @cached_property
    def decoder(self) -> Decoder:
        """Its own."""
        return load_decoder(self.uncertainty, self.card)

    def columns_among(self, features: Sequence[str]) -> Ints:
        """(P,) where its features stand among these."""
        places = {name: number for number, name in enumerate(features)}
        return np.array([places[name] for name in self.card.features], dtype=np.int64)

    def scaler_over(self, fitted: RowScaler) -> RowScaler:
        """See `Primary`."""
        columns = self.columns_among(fitted.features)
        symbols = {}
        for name, scale in fitted.symbols.items():
            own = self.scaler.symbols[name]
            center_F, scale_F = scale.center_F.copy(), scale.scale_F.copy()
            center_F[columns], scale_F[columns] = own.center_F, own.scale_F
            symbols[name] = SymbolScale(center_F, scale_F, own.label_scale_K)
        is_level = np.array(fitted.is_level_F, dtype=bool)
        is_level[columns] = self.scaler.is_level_F
        return RowScaler(fitted.features, tuple(is_level.tolist()), symbols)

    def sides_of(self, rows: SymbolRows, features: Sequence[str], costs: Costs) -> Ints:
        """See `Primary`."""
        x_RP = rows.x_NF[:, self.columns_among(features)]
        is_whole_R = np.isfinite(x_RP).all(axis=1) & np.isfinite(rows.close_N) & (rows.close_N > 0)
        ends = np.flatnonzero(streaks(np.asarray(is_whole_R), rows.runs_N) >= self.lookback)
        found_R = np.zeros(len(x_RP), dtype=np.int64)
        if not len(ends):
            return found_R
        scaled_RP = np.nan_to_num(self.scaler.rows(rows.symbol, x_RP))
        scale_NK = np.tile(self.scaler.symbols[rows.symbol].label_scale_K, (len(ends), 1))
        dead_zone_N = break_even(costs, rows.symbol, rows.close_N[ends], rows.spread_N[ends])
        found_R[ends] = self.sides(self.outputs(scaled_RP, ends).astype(np.float64), scale_NK, dead_zone_N)
        return found_R

    def sides(self, outputs_NK: Floats, label_scale_NK: Floats, dead_zone_N: Floats) -> Ints:
        """See `Primary`."""
        return stated_sides(self.decoder, outputs_NK, label_scale_NK, dead_zone_N)

    def outputs(self, scaled_RP: Floats32, ends: Ints) -> Floats32:
        """(N, K) what it says of the windows that end at these rows, in units of its label scale."""
        offsets, size = np.arange(1 - self.lookback, 1), max(1, SCORING_ROWS // self.lookback)
        found = [
            self.answer(scaled_RP[ends[begin : begin + size, None] + offsets]) for begin in range(0, len(ends), size)
        ]
        return np.concatenate(found)

    def answer(self, windows_NTP: Floats32) -> Floats32:
        """See `Primary`."""
        return self.network.predict(windows_NTP).outputs_NK

    def decoding(self) -> Mapping[str, Any]:
        """See `Primary`."""
        card = {**self.card.model_dump(mode="json", exclude={"readings", "certificate"}), **KEPT_OF_CARD}
        return {"card": card, "uncertainty": dict(self.uncertainty)}

    def followed_by(self, family: AnyFamily) -> AnyFamily:
        """See `Primary`."""
        from ml_workbench_service.learning.networks.followed.family import FollowingFamily

        return FollowingFamily(family, self)
