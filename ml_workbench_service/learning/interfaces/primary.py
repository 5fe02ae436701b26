"""`Primary`: the published version whose side a meta-labelling training learns to follow or to skip.

Its implementation runs a bundle's network (`learning/networks/followed/`); here stands what data sets, tasks and
families ask of it, so that whoever checks requests loads no network.

Legend: R rows of one symbol, N windows, T rows of a window, P features of the primary, K outputs of the primary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ml_workbench_service.contracts.market import Costs, Floats, Floats32, Ints
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import PrimaryReference
from ml_workbench_service.learning.data.scaling import RowScaler
from ml_workbench_service.learning.data.windows import SymbolRows


class Primary(Protocol):
    """What is asked of the version that gives the side."""

    @property
    def reference(self) -> PrimaryReference:
        """Which it is."""
        ...

    @property
    def card(self) -> ModelCard:
        """Its card."""
        ...

    @property
    def file(self) -> Path:
        """Its graph on disk."""
        ...

    @property
    def lookback(self) -> int:
        """Rows of a whole window."""
        ...

    def columns_among(self, features: Sequence[str]) -> Ints:
        """(P,) where its features stand among these."""
        ...

    def outputs(self, scaled_RP: Floats32, ends: Ints) -> Floats32:
        """(N, K) what it says of the windows that end at these rows, in units of its label scale."""
        ...

    def answer(self, windows_NTP: Floats32) -> Floats32:
        """(N, K) what it says of these windows, likewise."""
        ...

    def scaler_over(self, fitted: RowScaler) -> RowScaler:
        """The scaler with the primary's own centres and scales for the features that it reads, and its label scale."""
        ...

    def sides_of(self, rows: SymbolRows, features: Sequence[str], costs: Costs) -> Ints:
        """(R,) the side at each row, 0 where it says `hold` or has no whole window."""
        ...

    def sides(self, outputs_NK: Floats, label_scale_NK: Floats, dead_zone_N: Floats) -> Ints:
        """(N,) the sides that its outputs state, at these round-trip costs."""
        ...

    def decoding(self) -> Mapping[str, Any]:
        """What a follower's recipe keeps of it: its `card`, and its `uncertainty` as its own recipe has it."""
        ...

    def followed_by(self, family: Any) -> Any:
        """The family (`interfaces/family.py`, which knows of primaries) whose networks read the primary's outputs
        beside the features, and run it in their graph."""
        ...
