"""Feature store contract: `FeatureTable`, one symbol's bars and features by column, and the store's protocol.

Legend: N bars. Times are int64 milliseconds since the epoch, UTC. A bar is stamped with its opening and known at
`available_at_ms`; missing values are NaN and stay missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import AfterValidator, Field

from common_lib.redaction import redacted
from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, Symbol, Timeframe, UtcDatetime
from ml_workbench_service.contracts.reading_reports import PriceSide, ReadingReport, SeriesList, SpreadTime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Floats32 = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
else:  # clients and the page read these contracts too: numpy is 20 MiB of a process that computes nothing
    Floats = Floats32 = Ints = Bools = Any

FeatureKind = Literal["stationary", "level"]
"""`level` features (`close`, `sma_20`) are on the price's scale: a model reads their log ratio to the window's mean."""

FillRule = Literal["next_open", "next_close"]
"""When a signal from the close of bar t is filled: at the open of t+1, or (fixings) at the close of t+1."""


@dataclass(frozen=True)
class FeatureTable:
    """Bars of one symbol and timeframe with the asked columns, oldest first.

    `calendar` says which closures are scheduled: `fx` is the FX week in New York time, `fixings` the days on which
    the European Central Bank fixed rates (a day without fixing is no gap, whatever the day).
    """

    symbol: Symbol
    timeframe: Timeframe
    opened_ms: Ints  # (N,) strictly increasing
    available_at_ms: Ints  # (N,) opening + timeframe, or later
    columns: Mapping[str, Floats]  # each (N,)
    data_source: str  # "ecb_daily", "simulated", "file", "feature_store"
    calendar: Literal["fx", "fixings"] = "fx"
    fill: FillRule = "next_open"
    price_side: PriceSide = "mid"
    spread_time: SpreadTime = "unknown"
    warnings: tuple[str, ...] = ()
    reports: tuple[ReadingReport, ...] = ()  # of the files that the bars come from
    declares_times: bool = False  # the source says of every bar when its columns were known

    def __len__(self) -> int:
        return len(self.opened_ms)


@dataclass(frozen=True)
class Bars:
    """One symbol's raw bars, oldest first: no bar has a missing price, none is incomplete."""

    symbol: Symbol
    timeframe: Timeframe
    opened_ms: Ints  # (N,) strictly increasing
    available_at_ms: Ints  # (N,)
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    data_source: str
    extra: Mapping[str, Floats]  # volume, spread, and the user's own columns, each (N,)
    calendar: Literal["fx", "fixings"] = "fx"
    fill: FillRule = "next_open"
    synthetic_range: bool = False  # high and low were not observed
    price_side: PriceSide = "mid"
    spread_time: SpreadTime = "unknown"  # when in the bar `extra["spread"]` was taken
    reports: tuple[ReadingReport, ...] = ()  # of the files that the bars come from
    declares_times: bool = False  # every file has its own `available_at` for every bar

    def __len__(self) -> int:
        return len(self.opened_ms)


class BarSource(Protocol):
    """Where a local feature store reads bars: the user's folder, or the sample."""

    def bars(self, symbol: str, timeframe: str) -> Bars:
        """The whole series, cached; raises DataValidationError for a symbol or timeframe it does not have."""
        ...

    def own_columns(self) -> list[str]:
        """Names of the user's own feature columns, if any."""
        ...

    def series(self) -> SeriesList:
        """Every series that it has by its reading report, and every file that gives none."""
        ...

    def now_ms(self) -> int | None:
        """The source's own "now" where it is not the clock, else None."""
        ...

    def check(self) -> "OutsideThing":
        """How it is, for `/health/ready`; never raises."""
        ...


class FeatureParameter(Contract):
    """One whole-number parameter of a feature name, such as the 20 of `sma_20`."""

    name: str
    default: int
    minimum: int
    maximum: int


class FeatureDescription(Contract):
    """One feature this store can serve: `name` is a pattern such as `sma_{period}`, `example` a usable name."""

    name: str
    example: str
    kind: FeatureKind
    description: str
    parameters: tuple[FeatureParameter, ...] = ()
    needs_range: bool = False  # uses the bars' high and low, which are synthetic on the daily sample


class OutsideThing(Contract):
    """One outside thing as `/health/ready` shows it; no secret of its address is in `detail`."""

    mode: Literal["embedded", "remote", "folder", "off"]
    state: Literal["ok", "degraded", "down", "disabled"]
    detail: Annotated[str, AfterValidator(redacted)] = ""
    last_ok_at: UtcDatetime | None = Field(
        default=None,
        description="When it was last found well; null where it was not asked, or never yet.",
    )


class FeatureStore(Protocol):
    """Where bars and features come from; three implementations behind one conformance suite.

    Methods block; the API calls them in a thread. An implementation never falls back to other data.
    """

    def fetch(
        self,
        symbols: Sequence[str],
        timeframe: str,
        *,
        start_ms: int | None,
        end_ms: int | None,
        features: Sequence[str],
        as_of_ms: int | None = None,
        last: int | None = None,
    ) -> list[FeatureTable]:
        """Tables in the order of `symbols`: bars with start ≤ opening < end that are known at `as_of_ms`.

        `features` may name the bars' own columns (`open`, `high`, `low`, `close`, `volume`, `spread`) too. `last`
        keeps the newest that many bars of what is left. An open end means "up to the newest known bar".

        Raises:
            DataValidationError: unknown symbol, feature or timeframe, or a range without a bar (422).
            UpstreamError: the server answered with an error or with nonsense (502).
            UpstreamTimeoutError: the server did not answer in time (504).
        """
        ...

    def describe(self) -> list[FeatureDescription]:
        """The features this store can serve, with their parameters; raises like `fetch` where a server is asked."""
        ...

    def series(self) -> SeriesList:
        """The series that it has, as their files were read, and the files that give none; raises like `describe`."""
        ...

    def kind_of(self, feature: str) -> FeatureKind:
        """`level` or `stationary`, by name alone; raises DataValidationError for a name no store could serve."""
        ...

    def now_ms(self) -> int | None:
        """The store's own "now" where the clock has passed it (the sample ends with its last bar), else None."""
        ...

    def check(self) -> OutsideThing:
        """How it is, for `/health/ready`; never raises."""
        ...


@runtime_checkable
class Recomputing(Protocol):
    """A feature store that makes its columns itself, and so can make them again from altered bars."""

    def altered(self, alter: Callable[[Bars], Bars]) -> FeatureStore:
        """The same store over altered bars, sharing nothing that was computed over the true ones."""
        ...


NEVER_MS = 2**63 - 1
"""Later than every moment: of a value that was never seen, or was another one when it was."""


class ColumnWitness(Protocol):
    """Who remembers when ready-made columns' values were first seen, and what they were then.

    Nobody can make such a column again from bars. But a value that was seen before its label began, and is still the
    same, did not know the label.
    """

    def observe(self, series: tuple[str, str], *, opened_ms: Ints, columns: Mapping[str, Floats], now_ms: int) -> None:
        """Notes the newest values that are not noted yet as first seen now; never fails.

        Args:
            series: symbol and timeframe.
            opened_ms: (N,) bars that are known by now.
            columns: (N,) by name.
        """
        ...

    def seen_ms(self, series: tuple[str, str], column: str, *, opened_ms: Ints, values_N: Floats) -> Ints:
        """(N,) when each value was first seen; `NEVER_MS` of one that was not, or that has changed since."""
        ...

    def watched(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Columns that were ever seen, by symbol and timeframe."""
        ...


@runtime_checkable
class Witnessing(Protocol):
    """A feature store whose ready-made columns somebody watches."""

    witness: ColumnWitness | None


def recomputing(store: FeatureStore) -> Recomputing | None:
    """The store as one that can make its columns again; None where another makes them.

    Where that depends on a server, the store says so by `makes_columns`, and raises as `fetch` does.
    """
    if not isinstance(store, Recomputing):
        return None
    makes_columns: Callable[[], bool] | None = getattr(store, "makes_columns", None)
    return store if makes_columns is None or makes_columns() else None


MOST_COST = 10_000
"""Pips of a price near one, or basis points: all of what is traded."""


class Costs(Asked):
    """What trading costs: pips for spread and swap per night, basis points of the traded value for the rest."""

    spread_pips: Finite | None = None
    commission_bp: Finite | None = None
    slippage_bp: Finite | None = None
    swap_long_pips: Finite | None = None
    swap_short_pips: Finite | None = None

    def nonsense(self) -> dict[str, str]:
        """By field a sentence about each cost at which nobody trades: paid for trading, or more than any price."""
        bounds = {name: (-MOST_COST if name.startswith("swap") else 0, MOST_COST) for name in Costs.model_fields}
        return {
            name: f"{name} lies from {least} to {most}; correct it"
            for name, (least, most) in bounds.items()
            if not least <= (getattr(self, name) or 0.0) <= most
        }
