"""Absent feature store: of a replica that was named none. It answers questions that bring their features."""

from collections.abc import Sequence

from common_lib.exceptions import MisdirectedError
from ml_workbench_service.contracts.market import (
    FeatureDescription,
    FeatureKind,
    FeatureTable,
    OutsideThing,
)
from ml_workbench_service.contracts.reading_reports import SeriesList


class AbsentFeatureStore:
    """A `FeatureStore` that has nothing.

    Args:
        control: how the control plane is named to callers.
    """

    def __init__(self, control: str) -> None:
        self._control = control

    def fetch(
        self, symbols: Sequence[str], timeframe: str, *, start_ms: int | None, end_ms: int | None,
        features: Sequence[str], as_of_ms: int | None = None, last: int | None = None,
    ) -> list[FeatureTable]:  # fmt: skip
        """Raises MisdirectedError."""
        raise self._elsewhere()

    def now_ms(self) -> int | None:
        """Raises MisdirectedError."""
        raise self._elsewhere()

    def describe(self) -> list[FeatureDescription]:
        """Raises MisdirectedError."""
        raise self._elsewhere()

    def series(self) -> SeriesList:
        """Raises MisdirectedError."""
        raise self._elsewhere()

    def kind_of(self, feature: str) -> FeatureKind:
        """Raises MisdirectedError."""
        raise self._elsewhere()

    def check(self) -> OutsideThing:
        """It is off."""
        return OutsideThing(
            mode="off", state="disabled", detail="questions bring their features; set FEATURE_STORE_URL"
        )

    def _elsewhere(self) -> MisdirectedError:
        return MisdirectedError(
            f"this predict replica fetches no features: send them along, ask {self._control}, or start it with "
            "FEATURE_STORE_URL"
        )
