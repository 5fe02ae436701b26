"""The clock of a file of bars: what the file says, else `BARS_TIMEZONE`, else what its weeks prove; never a guess.

What is said is believed unless the weeks prove another clock. What nobody says is inferred from the FX files of the
same layout and source together: of all candidates those are left that no other one beats (`bar_weeks`); candidates
that give the same UTC are one; exactly one must be left. Gold and cryptocurrencies keep other hours and prove nothing.
Bars stamped with their ends are recognised by weeks that begin and end one bar late.

Daily bars without a time of day are dates, unless a zone is said: the bar of D counts as opened at D 00:00 UTC and as
known a day later, after every usual daily cut (17:00 New York, midnight UTC), so the rule may be late, never early.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.market import Bools, Ints
from ml_workbench_service.contracts.reading_reports import TimeZoneSource
from ml_workbench_service.integrations.feature_store.bar_columns import PRICES, RawBars, bad_file
from ml_workbench_service.integrations.feature_store.bar_weeks import Clock, Sessions
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, trading_day_opening

MOST_ODD_WEEKS = 0.05
"""Of all sessions, that may lie wrong under the clock that is taken: a feed's own stray bars, dropped and counted."""
LATE_WEEKS = 0.5
"""Of all sessions, that must end late before bars count as stamped with their ends; one stray bar does not suffice."""
ZONES = (
    "UTC",
    "America/New_York+7",
    "America/New_York",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    *(f"America/New_York{hours:+d}" for hours in (-1, 1, 5, 6, 8)),
    "Europe/London-1",
    "Europe/Athens+1",
    *(f"UTC{hours:+d}" for hours in (*range(-11, 0), *range(1, 15))),
    *("UTC-03:30", "UTC+03:30", "UTC+04:30", "UTC+05:30", "UTC+05:45", "UTC+06:30", "UTC+09:30"),
)
"""What a file's clock may be, the likelier name of two equal ones first; MetaTrader's is asked before UTC."""
METALS_AND_COINS = frozenset(("XAU", "XAG", "XPT", "XPD", "BTC", "XBT", "ETH", "LTC", "XRP"))
COINS = frozenset(("BTC", "XBT", "ETH", "LTC", "XRP"))
FEWEST_DAYS = 5  # of dates, to tell trading days from those of openings or ends
_MOST_NAMED = 6


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one file tells about its clock."""

    file: str
    symbol: str
    bar_ms: int
    sessions: Sessions
    said: str | None  # the zone that the file itself says
    is_local: bool  # whether it says "local time"
    is_broker: bool
    has_times_of_day: bool  # only daily bars may have none
    local_ms: Ints  # (N,) of daily bars, which have few; else empty

    @classmethod
    def of(cls, raw: RawBars, symbol: str, bar_ms: int) -> "Evidence":
        """From its rows; flat ones without volume may be an exporter's filling and tell nothing."""
        local = np.unique(raw.times.local_ms[observed(raw)])
        return cls(
            file=raw.file,
            symbol=symbol,
            bar_ms=bar_ms,
            sessions=Sessions.of(local, bar_ms, is_fx=_is_fx(symbol)),
            said=raw.times.zone,
            is_local=raw.times.is_local,
            is_broker=raw.is_broker_time,
            has_times_of_day=bool((local % DAY_MS != 0).any()),
            local_ms=local if bar_ms >= DAY_MS else local[:0],
        )

    @property
    def is_fx(self) -> bool:
        """Whether its weeks are the FX week's."""
        return _is_fx(self.symbol)

    @property
    def is_crypto(self) -> bool:
        """Whether it trades at weekends too."""
        return not COINS.isdisjoint(self.symbol.split("/"))

    @property
    def are_dates(self) -> bool:
        """Whether its times are dates alone."""
        return self.bar_ms >= DAY_MS and not self.has_times_of_day


@dataclass(frozen=True)
class Decision:
    """A file's clock and who said it."""

    clock: Clock
    source: TimeZoneSource
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def observed(raw: RawBars) -> Bools:
    """(N,) rows with all prices that something happened in."""
    prices = np.stack([raw.prices[name] for name in PRICES])
    volume = raw.extra.get("volume", np.zeros(prices.shape[1]))
    flat = (raw.prices["high"] == raw.prices["low"]) & ~(volume > 0)
    return np.asarray(~np.isnan(prices).any(axis=0) & ~flat)


def _is_fx(symbol: str) -> bool:
    return METALS_AND_COINS.isdisjoint(symbol.split("/"))


def decide(evidence: Evidence, pool: Sequence[Evidence], *, setting: str | None) -> Decision:
    """The file's clock.

    Args:
        pool: the FX files of the same layout and source whose clock nobody says, this file among them if it is one.
        setting: `BARS_TIMEZONE`.

    Raises:
        DataValidationError: the weeks contradict what is said, or do not tell; names the candidates.
    """
    if evidence.said is not None:
        return _checked(evidence, evidence.said, "file")
    if setting is not None:
        return _checked(evidence, setting, "setting")
    if evidence.is_local:
        raise bad_file(evidence.file, "says local time, and not whose; set BARS_TIMEZONE to the clock of its writer")
    if evidence.are_dates:
        return _dates(evidence)
    timed = [each for each in pool if not each.are_dates]
    if not timed:
        raise bad_file(
            evidence.file,
            f"does not say its clock, and {evidence.symbol} cannot prove it; set BARS_TIMEZONE, or add an FX file of "
            "the same program",
        )
    return _inferred(evidence, timed)


def contradicts(clock: Clock, evidence: Evidence) -> bool:
    """Whether the file's own weeks prove another clock than this, or fit none."""
    if evidence.is_crypto or evidence.are_dates or not evidence.sessions.wrong(clock).any():
        return False
    return evidence.sessions.edges(clock).tobytes() not in _left([evidence], (clock.zone, *ZONES))


def _checked(evidence: Evidence, zone: str, source: TimeZoneSource) -> Decision:
    """What is said, unless the weeks prove otherwise."""
    if evidence.are_dates:
        _check_days(evidence)
    if not contradicts(Clock(zone), evidence):
        return Decision(Clock(zone), source, notes=_others(evidence, zone), warnings=_odd_cut(evidence, zone))
    rivals = _left([evidence], (zone, *ZONES)) if evidence.is_fx else {}
    rival = next(iter(rivals.values())) if len(rivals) == 1 else None
    late = Clock(zone, is_end=True)
    if rival is not None and evidence.sessions.edges(late).tobytes() in rivals:
        return Decision(late, source, notes=("its weeks begin and end one bar late: bars are stamped with their end",))
    by = "it says" if source == "file" else "BARS_TIMEZONE says"
    wrong = evidence.sessions.wrong(Clock(zone))
    text = f"{int(wrong.sum())} of its {len(wrong)} weeks do not lie in the FX week (Sunday to Friday 17:00 New York) "
    text += f"in the zone that {by}, {zone}; "
    if rival is None:
        text += "check its clock, and " + ("correct its times" if source == "file" else "set BARS_TIMEZONE to it")
    else:
        step = f"set BARS_TIMEZONE={rival.zone}" if source == "setting" else "correct its times"
        text += f"they do as {rival}: {step}"
    raise bad_file(evidence.file, text)


def _others(evidence: Evidence, zone: str) -> tuple[str, ...]:
    """A word where the weeks of long bars would fit other clocks than the one that is said."""
    if not evidence.is_fx or not HOUR_MS < evidence.bar_ms < DAY_MS:
        return ()
    fitting = [str(clock) for clock in _left([evidence], (zone, *ZONES)).values() if clock.zone != zone]
    if not fitting:
        return ()
    return (f"its weeks do not prove {zone}, they fit {', '.join(fitting[:_MOST_NAMED])} too",)


def _odd_cut(evidence: Evidence, zone: str) -> tuple[str, ...]:
    """A warning where daily bars open neither with the FX day nor at midnight UTC."""
    if evidence.bar_ms < DAY_MS:
        return ()
    opened = Clock(zone).opened(evidence.local_ms, evidence.bar_ms)
    if (trading_day_opening(opened) == opened).all() or (opened % DAY_MS == 0).all():
        return ()
    return (f"in {zone} its days open at {iso_of_ms(int(opened[-1]))[11:16]} UTC, not at 17:00 New York or 00:00 UTC",)


def _inferred(evidence: Evidence, pool: Sequence[Evidence]) -> Decision:
    """The one clock under which the pool's weeks lie as the FX week does."""
    # MetaTrader's usual clock is, over a season, the same as others: then it is called by its own name.
    zones = ("America/New_York+7", "Europe/Athens", *ZONES) if evidence.is_broker else ZONES
    left = _left(pool, zones, also=evidence)
    names = _names(pool)
    if not left:
        raise bad_file(
            evidence.file,
            f"does not say its clock, and under none that is known do the weeks of {names} lie in the FX week (Sunday "
            "to Friday 17:00 New York); check its times, or set BARS_TIMEZONE",
        )
    if len(left) > 1:
        listed = ", ".join(str(clock) for clock in list(left.values())[:_MOST_NAMED])
        more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
        raise bad_file(
            evidence.file,
            f"does not say its clock, and the weeks of {names} fit several: {listed}{more}; set BARS_TIMEZONE to the "
            "right one (for most brokers America/New_York+7), or add an FX file of the same program in 30m or finer",
        )
    clock = next(iter(left.values()))
    num_weeks = sum(len(each.sessions) for each in pool)
    return Decision(clock, "inferred", notes=(f"{clock}: the weeks of {names} prove it, {num_weeks} in all",))


def _left(pool: Sequence[Evidence], zones: Sequence[str], *, also: Evidence | None = None) -> dict[bytes, Clock]:
    """The clocks that no other beats and that leave few weeks wrong, one for each reading of the files in UTC.

    Readings of the file that the question is about differ too: hourly bars cannot tell an hour of the zone from stamps
    at the end, which would be a quarter of an hour for a file of quarters.
    """
    read = [*pool, *([also] if also is not None and also not in pool else [])]
    readings = {clock: _wrong(pool, clock) for clock in map(Clock, dict.fromkeys(zones))}
    late = [Clock(each.zone, is_end=True) for each, wrong in readings.items() if wrong.mean() >= LATE_WEEKS]
    readings |= {clock: _wrong(pool, clock) for clock in late}
    few = {clock: wrong for clock, wrong in readings.items() if wrong.sum() <= MOST_ODD_WEEKS * len(wrong)}
    distinct = list({wrong.tobytes(): wrong for wrong in readings.values()}.values())
    best = {wrong.tobytes() for wrong in distinct if not any(_beats(theirs, wrong) for theirs in distinct)}
    left: dict[bytes, Clock] = {}
    for clock, wrong in few.items():
        if wrong.tobytes() in best:
            left.setdefault(b"".join(each.sessions.edges(clock).tobytes() for each in read), clock)
    return left


def _wrong(pool: Sequence[Evidence], clock: Clock) -> Bools:
    """Every session of every file; of daily bars with a time of day all, unless they open with the FX day."""
    parts = []
    for each in pool:
        wrong = each.sessions.wrong(clock)
        if each.is_fx and each.bar_ms >= DAY_MS:
            opened = clock.opened(each.local_ms, each.bar_ms)
            wrong = wrong | bool((trading_day_opening(opened) != opened).any())
        parts.append(wrong)
    return np.concatenate(parts)


def _beats(wrong: Bools, other: Bools) -> bool:
    """Whether the wrong weeks of the one are some of the other's, and not all."""
    return bool((wrong <= other).all() and (wrong < other).any())


def _names(pool: Sequence[Evidence]) -> str:
    names = sorted({each.file for each in pool})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _dates(evidence: Evidence) -> Decision:
    """The rule about daily bars without a time of day."""
    _check_days(evidence)
    rule = "dates alone: the bar of a day counts as opened at 00:00 UTC and as known 24 hours later"
    return Decision(Clock("UTC"), "none", notes=(rule,))


def _check_days(evidence: Evidence) -> None:
    """Refuses dates that are not the trading days': those of openings on Sundays, or of ends on Saturdays."""
    days = (evidence.local_ms // DAY_MS + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    monday, friday, saturday, sunday = (int(np.sum(days == day)) for day in (0, 4, 5, 6))
    if evidence.is_crypto or len(days) < FEWEST_DAYS:
        return
    if 2 * friday < sunday or 2 * saturday > monday:
        raise bad_file(
            evidence.file,
            "its days are those of the bars' openings or ends, not the trading days Monday to Friday; write a time and "
            "a zone beside each date",
        )


def moved(old: Clock, new: Clock, evidence: Evidence, until_ms: int) -> str | None:
    """What becomes of rows that were read already: a sentence where they would move."""
    firsts = np.concatenate([evidence.sessions.first_ms, evidence.sessions.last_ms, evidence.local_ms])
    known = firsts[firsts <= until_ms]
    before, after = old.opened(known, evidence.bar_ms), new.opened(known, evidence.bar_ms)
    differs = np.flatnonzero(before != after)
    if len(differs) == 0:
        return None
    at = int(differs[0])
    return f"as {old} a bar opened at {iso_of_ms(int(before[at]))}, as {new} it does at {iso_of_ms(int(after[at]))}"
