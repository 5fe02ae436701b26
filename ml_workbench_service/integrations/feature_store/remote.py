"""`RemoteFeatureStore`: a Feature Store Service over HTTP.

It is asked by name, and every byte of its answer is checked; it never falls back to other data. Only bars known at
`as_of`, or now, are served. Of a server that lists the bars' own columns only bars are fetched, and the features are
made here (`remote_bars`); any other's are taken as they come, ready-made.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from common_lib.exceptions import DataValidationError, UpstreamError, UpstreamTimeoutError
from common_lib.logging import correlation_id
from ml_workbench_service.contracts.clock import WALL, Clock, clock_ms
from ml_workbench_service.contracts.contract import (
    TIMEFRAMES_MS,
    iso_of_ms,
)
from ml_workbench_service.contracts.market import (
    Bars,
    ColumnWitness,
    FeatureDescription,
    FeatureKind,
    FeatureStore,
    FeatureTable,
    OutsideThing,
)
from ml_workbench_service.contracts.market_data import BAR_COLUMNS
from ml_workbench_service.contracts.reading_reports import SeriesList
from ml_workbench_service.exchanges.bounded_http import BoundedTransport, probed, within
from ml_workbench_service.integrations.feature_store.remote_bars import FIRST_START_MS, DerivedFeatures, RemoteBars
from ml_workbench_service.integrations.feature_store.remote_format import (
    Asked,
    descriptions_of_json,
    refusal,
    series_of_json,
    tables_of_arrow,
    tables_of_json,
)
from ml_workbench_service.integrations.feature_store.table_format import ARROW
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.market.calendar import DAY_MS, advance
from ml_workbench_service.market.features import indicators
from ml_workbench_service.market.features.tables import (
    known_by,
    normal_request,
    sliced,
)

PRICES = frozenset({"open", "high", "low", "close"})
MAX_ANSWER_BYTES = 256 * 2**20
TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5.0
_HEALTH_TIMEOUT_S = 2.0
_BACKWARD_FACTORS = (1.5, 6.0)  # how far back to ask for the last so many bars; then over gaps; then everything
_MOST_PAGES = 100
_FEATURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class RemoteFeatureStore:
    """A `FeatureStore` behind HTTP: one connection pool, retries of the connection only, no redirects, no proxies.

    The batch route is asked first; where the server has none, each symbol is fetched by itself.

    Args:
        url: the server's address, without `/api/v1`.
        api_key: sent as `X-API-Key`, where there is one.
        timeout_s: for a whole answer, however slowly it drips.
        max_bytes: the longest answer.
        clock: the present.
        witness: sees what the server delivers beside prices; None: nobody does.
        clock: the present.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_ANSWER_BYTES,
        clock: Clock = WALL,
        witness: ColumnWitness | None = None,
    ) -> None:
        self.witness = witness
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._has_batch = True
        self._listed: tuple[FeatureDescription, ...] | None = None  # None: not asked yet
        self.source = RemoteBars(self._ask, listed=self._names, own=self._own_columns, clock=clock)
        self._derived = DerivedFeatures(self.source, is_own=self._is_own, clock=clock, witness=witness)
        self._client = httpx.Client(
            transport=BoundedTransport(retries=2),
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
            headers=httpx.Headers({"X-API-Key": api_key} if api_key else {}, encoding="utf-8"),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

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
        """Tables in the order of `symbols`; see `contracts.market.FeatureStore`."""
        names, timeframe = normal_request(symbols, timeframe)
        if self.makes_columns():
            return self._derived.fetch(
                names, timeframe, start_ms=start_ms, end_ms=end_ms, features=features, as_of_ms=as_of_ms, last=last
            )
        asked = Asked(names, timeframe, tuple(features))
        now = clock_ms(self._clock)
        as_of = known_by(as_of_ms, now)
        end = as_of + 1 if end_ms is None else end_ms
        tables: list[FeatureTable] = []
        *tries, furthest = _starts(start_ms, end, timeframe=timeframe, last=last)
        for start in [*tries, furthest]:
            try:
                got = self._ask(asked, start, end, as_of_ms=as_of_ms)
            except DataValidationError:  # a server may refuse an empty range; the furthest start decides
                if start == furthest:
                    raise
                continue
            tables = [sliced(table, start_ms=start, end_ms=end, as_of_ms=as_of, last=last) for table in got]
            for table in tables:
                self._show(table, now)
            if last is not None and all(len(table) >= last for table in tables):
                break
        for table in tables:
            if len(table) == 0:
                raise DataValidationError.at(
                    "start_date",
                    f"the Feature Store has no bar of {table.symbol} {timeframe} in this range; widen it",
                    code="empty_range",
                )
        return tables

    def describe(self) -> list[FeatureDescription]:
        """What `GET /api/v1/features` says, names or descriptions; our own table where the server has no such route."""
        status, _, body = self._send("GET", "/api/v1/features")
        if status in (404, 405):
            self._listed = ()
            return indicators.describe()
        if status != 200:
            raise refusal(status, body)
        described = descriptions_of_json(body)
        self._listed = tuple(described)
        return described

    def series(self) -> SeriesList:
        """What `GET /api/v1/series` says, all pages of it; nothing where the server has no such route."""
        found, query = SeriesList(), {"limit": "200"}
        for _ in range(_MOST_PAGES):
            status, _, body = self._send("GET", "/api/v1/series", params=query)
            if status in (404, 405):
                return found
            if status != 200:
                raise refusal(status, body)
            page = series_of_json(body)
            found = SeriesList(series=(*found.series, *page.series), ignored=(*found.ignored, *page.ignored))
            if page.next_cursor is None:
                break
            query["cursor"] = page.next_cursor
        return found

    def makes_columns(self) -> bool:
        """Whether the server has bars, so that the features are made here; it is asked once for its list."""
        if self._listed is None:
            self.describe()
        return set(BAR_COLUMNS) <= self._names()

    def whole_bars(self, symbol: str, timeframe: str, own: Sequence[str] = ()) -> Bars:
        """The series itself, of a server that has bars; see `LocalFeatureStore`."""
        return self._derived.whole_bars(symbol, timeframe, own)

    def altered(self, alter: Callable[[Bars], Bars]) -> FeatureStore:
        """The same store over altered bars, of a server that has bars (`makes_columns`)."""
        return self._derived.altered(alter)

    def kind_of(self, feature: str) -> FeatureKind:
        """By our table, else as the server described it, else `stationary`: a server may have features of its own."""
        if _FEATURE_NAME.fullmatch(feature):
            return indicators.kind_among(self._listed or (), feature)
        return indicators.kind_of(feature)

    def _names(self) -> set[str]:
        """As far as the server has listed them; indicators by their patterns."""
        return {entry.name for entry in self._listed or ()}

    def _own_columns(self) -> list[str]:
        """What the server lists beside our indicators and the bars' own columns."""
        ours = {entry.name for entry in indicators.describe()}
        return sorted(entry.example for entry in self._listed or () if entry.name not in ours)

    def _is_own(self, feature: str) -> bool:
        """Whether the server is asked for this column: it lists it, or it is no indicator of ours."""
        if feature in self._own_columns():
            return True
        try:
            indicators.kind_of(feature)
        except DataValidationError as error:
            if error.details["errors"][0]["code"] != "unknown_feature":
                raise
            return True
        return False

    def now_ms(self) -> int | None:
        """None: the server lives by the clock."""
        return None

    def check(self) -> OutsideThing:
        """Whether it answers as a Feature Store: by `GET /health`, or (a service like this one) by its features."""
        if answers_as_feature_store(self._url, timeout_s=_HEALTH_TIMEOUT_S):
            return OutsideThing(mode="remote", state="ok", detail="answers as a Feature Store")
        try:
            url = f"{self._url}/api/v1/features"
            status, body = probed(url, timeout_s=_HEALTH_TIMEOUT_S, headers=self._client.headers)
            if status == 200 and descriptions_of_json(body):
                return OutsideThing(mode="remote", state="ok", detail="lists features as a Feature Store")
        except (httpx.HTTPError, httpx.InvalidURL, UpstreamError):
            pass
        return OutsideThing(mode="remote", state="down", detail="does not answer as a Feature Store")

    def _show(self, table: FeatureTable, now_ms: int) -> None:
        """Has the witness see the server's own columns."""
        own = {name: column for name, column in table.columns.items() if name not in PRICES}
        if self.witness is not None and own:
            series = (table.symbol, table.timeframe)
            self.witness.observe(series, opened_ms=table.opened_ms, columns=own, now_ms=now_ms)

    def _ask(self, asked: Asked, start_ms: int, end_ms: int, *, as_of_ms: int | None = None) -> list[FeatureTable]:
        """Tables as the server gives them, checked, from the batch route or one by one."""
        query: dict[str, Any] = {
            "timeframe": asked.timeframe,
            "start_date": iso_of_ms(start_ms),
            "end_date": iso_of_ms(end_ms),
        }
        if as_of_ms is not None:
            query["as_of"] = iso_of_ms(as_of_ms)
        if self._has_batch:
            body = {"symbols": list(asked.symbols), "features": list(asked.features), **query}
            status, kind, answer = self._send("POST", "/api/v1/features/batch", json=body)
            if status not in (404, 405):
                return self._tables(status, kind, answer, asked, is_batch=True)
        query["features"] = ",".join(asked.features)
        tables = []
        for symbol in asked.symbols:
            status, kind, answer = self._send("GET", f"/api/v1/features/{quote(symbol, safe='')}", params=query)
            alone = replace(asked, symbols=(symbol,))
            tables += self._tables(status, kind, answer, alone, is_batch=False)
        self._has_batch = False  # only now: a batch may also say 404 about a symbol
        return tables

    def _tables(self, status: int, kind: str, body: bytes, asked: Asked, *, is_batch: bool) -> list[FeatureTable]:
        if status != 200:
            raise refusal(status, body)
        if kind == ARROW:
            return tables_of_arrow(body, asked)
        return tables_of_json(body, asked, is_batch=is_batch)

    def _send(self, method: str, path: str, **content: Any) -> tuple[int, str, bytes]:
        """Status, media type and body of one exchange, within the limits of time and bytes."""
        headers = {"Accept": f"{ARROW}, application/json"}
        if correlation_id():
            headers["X-Correlation-ID"] = correlation_id()
        body = bytearray()
        try:
            with (
                within(self._timeout_s),
                self._client.stream(method, self._url + path, headers=headers, **content) as answer,
            ):
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise UpstreamError("the Feature Store's answer is too long; ask for a shorter range")
                return answer.status_code, answer.headers.get("content-type", "").partition(";")[0].strip(), bytes(body)
        except httpx.TimeoutException as error:
            raise self._late() from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UpstreamError(
                "the Feature Store cannot be reached; check FEATURE_STORE_URL and its server"
            ) from error

    def _late(self) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(
            f"the Feature Store did not answer within {self._timeout_s:g} s; ask for less, or again later"
        )


def answers_as_feature_store(url: str, *, timeout_s: float) -> bool:
    """Whether `GET {url}/health` says `"service": "feature-store"` in time; never raises."""
    try:
        status, body = probed(url.rstrip("/") + "/health", timeout_s=timeout_s)
        said = json_object(body) if status == 200 else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return bool(said.get("service") == "feature-store")


def _starts(start_ms: int | None, end_ms: int, *, timeframe: str, last: int | None) -> list[int]:
    """Where to start asking, in turn: the asked start, or far enough back for the last so many bars."""
    if start_ms is not None:
        return [start_ms]
    if last is None:
        return [FIRST_START_MS]
    lengths = [round(factor * last * TIMEFRAMES_MS[timeframe]) + DAY_MS for factor in _BACKWARD_FACTORS]
    return [*(max(FIRST_START_MS, int(advance(end_ms, -length))) for length in lengths), FIRST_START_MS]
