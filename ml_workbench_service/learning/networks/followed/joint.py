"""`Joint`: how a classifier's windows, its primary's and the whole ones fit together.

Legend: N windows, L rows of the classifier's window, P of the primary's, K outputs of the primary.
"""

from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats32, Ints


@dataclass(frozen=True)
class Joint:
    """How the classifier's windows are made of the whole ones.

    Attributes:
        lookback: L, the classifier's.
        primary_lookback: P, the primary's.
        own: places of the classifier's features among all.
        asked: places of the primary's.
        is_level_F: of all features.
        mean_K, deviation_K: of the primary's outputs over the training part.
    """

    lookback: int
    primary_lookback: int
    own: Ints
    asked: Ints
    is_level_F: tuple[bool, ...]
    mean_K: Floats32
    deviation_K: Floats32

    @property
    def windows_LP(self) -> Ints:
        """(L, P) rows of a whole window that the primary reads for each of the classifier's rows."""
        return np.arange(self.lookback)[:, None] + np.arange(self.primary_lookback)

    def scaled(self, outputs_NK: Floats32) -> Floats32:
        """The primary's outputs as the classifier reads them."""
        return np.asarray((outputs_NK - self.mean_K) / self.deviation_K, dtype=np.float32)
