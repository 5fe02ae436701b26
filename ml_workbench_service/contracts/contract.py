"""`Contract`: frozen, refuses unknown keys, every number finite; with the value types that all contracts share."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic import Field as Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
_DATE = re.compile(r"\d-\d")
VERSION_PATTERN = r"^(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})$"


class Contract(BaseModel):
    """One idea, one class, on the wire and on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


AnyContract = TypeVar("AnyContract", bound=Contract)


def constructed(kind: type[AnyContract], values: dict[str, Any]) -> AnyContract:
    """A contract of values that are known to be right, every field in its order: nothing is checked or filled in.

    pydantic's `model_construct`, which looks for defaults and aliases, takes ten times as long.
    """
    made = kind.__new__(kind)
    object.__setattr__(made, "__dict__", values)
    object.__setattr__(made, "__pydantic_fields_set__", set(values))
    object.__setattr__(made, "__pydantic_extra__", None)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with `Z`; fractions of a second only where there are any."""
    in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return in_utc.isoformat().replace("+00:00", "Z")


def iso_of_ms(moment_ms: int) -> str:
    """`iso` of milliseconds since the epoch."""
    return iso(datetime.fromtimestamp(moment_ms / 1000, tz=UTC))


def to_ms(moment: datetime) -> int:
    """Whole milliseconds since the epoch, exactly (floats would lose the last digit)."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(tz=UTC)


def _written(moment: Any) -> Any:
    """Numbers are refused: `2024` would count as seconds since 1970."""
    is_written = _DATE.search(moment) if isinstance(moment, str) else isinstance(moment, datetime)
    if not is_written:
        raise ValueError("write a time as 2025-03-01T00:00:00Z")
    return moment


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone: write it as 2025-03-01T00:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a time must lie within the years 1 to 9999 in UTC") from error


def _on_the_calendar(moment: datetime) -> datetime:
    if not 1971 <= moment.year < 2100:
        raise ValueError("a time of the market must lie within the years 1971 to 2099; check its year")
    return moment


WrittenMoment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
UtcDatetime = Annotated[
    datetime,
    BeforeValidator(_written),
    AfterValidator(_in_utc),
    PlainSerializer(iso, return_type=WrittenMoment),
]
"""A moment with its zone; kept and written in UTC with `Z`."""
MarketDatetime = Annotated[UtcDatetime, AfterValidator(_on_the_calendar)]
"""A moment that the market's calendar knows, with room for horizons and windows around it."""


def normal_symbol(text: Any) -> str:
    """`EUR/USD`, `EUR_USD`, `eur-usd` and `EURUSD` are one symbol, spelt `EUR/USD`.

    Raises:
        ValueError: not six letters with an optional separator, or twice the same currency.
    """
    return _symbol(text if isinstance(text, str) else "")


@lru_cache(maxsize=256)
def _symbol(text: str) -> str:
    match = re.fullmatch(r"([A-Za-z]{3})[/_\-.]?([A-Za-z]{3})", text)
    if match is None:
        raise ValueError("a symbol is two currency codes, such as EUR/USD")
    pair = match[1].upper(), match[2].upper()
    if pair[0] == pair[1]:
        raise ValueError("a symbol needs two different currencies, such as EUR/USD")
    return "/".join(pair)


Symbol = Annotated[str, BeforeValidator(normal_symbol)]

TIMEFRAMES_MS = {
    "1m": 60_000,
    "5m": 300_000,
    "15m": 900_000,
    "30m": 1_800_000,
    "1h": 3_600_000,
    "2h": 7_200_000,
    "4h": 14_400_000,
    "1d": 86_400_000,
}
"""Length of one bar, in milliseconds."""


def normal_timeframe(text: Any) -> str:
    """`H1`, `60m` and `1H` are `1h`; `D`, `D1` and `24h` are `1d`.

    Raises:
        ValueError: not a timeframe of this service.
    """
    return _timeframe(text.strip() if isinstance(text, str) else "")


@lru_cache(maxsize=256)
def _timeframe(text: str) -> str:
    compact = text.lower()
    compact = {"d": "1d", "daily": "1d", "h": "1h", "hourly": "1h", "24h": "1d", "60m": "1h", "240m": "4h"}.get(
        compact, compact
    )
    match = re.fullmatch(r"([mhd])(\d{1,3})", compact)
    if match:
        compact = match[2] + match[1]
    compact = re.sub(r"(?<=\d)min$", "m", compact)
    if compact not in TIMEFRAMES_MS:
        raise ValueError(f"a timeframe is one of {', '.join(TIMEFRAMES_MS)}")
    return compact


def each_once(values: list[Any] | None) -> list[Any] | None:
    """Refuses a list in which something stands twice; for `field_validator`."""
    if values is not None and len(set(values)) != len(values):
        raise ValueError("something stands twice; list each once")
    return values


Timeframe = Annotated[str, BeforeValidator(normal_timeframe)]


def _no_double_dot(name: str) -> str:
    if ".." in name:
        raise ValueError("a name holds no two dots in a row")
    return name


ModelId = Annotated[
    str, Field(pattern=NAME_PATTERN, description="Lower-case id of a model."), AfterValidator(_no_double_dot)
]
Semver = Annotated[str, Field(pattern=VERSION_PATTERN, description="Version, such as 1.0.0.")]
Finite = FiniteFloat
