"""Return fingerprints: a series is known again under any name, and another one is not taken for it."""

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.return_fingerprint import SAME, ReturnFingerprint

HOUR_MS = 3_600_000
START_MS = 1_600_000_000_000 // HOUR_MS * HOUR_MS


def hours(num: int = 6000, *, seed: int = 0, step_ms: int = HOUR_MS) -> tuple[Ints, Floats]:
    """Moments and closes of a random walk."""
    moves = 0.001 * np.random.default_rng(seed).standard_t(4, num)
    return START_MS + step_ms * np.arange(1, num + 1), 1.1 * np.exp(np.cumsum(moves))


def fingerprint(times: Ints, close: Floats, symbol: str = "EUR/USD") -> ReturnFingerprint:
    return ReturnFingerprint.of(symbol, times, close)


TIMES, CLOSE = hours()
OWN = fingerprint(TIMES, CLOSE)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("renamed", fingerprint(TIMES, CLOSE, "MY/OWN")),
        ("inverted", fingerprint(TIMES, 1 / CLOSE)),
        ("times a hundred", fingerprint(TIMES, 100 * CLOSE)),
        ("other bars", fingerprint(TIMES[3::4], CLOSE[3::4])),
        ("a part of it", fingerprint(TIMES[2000:3500], CLOSE[2000:3500])),
        ("with noise", fingerprint(TIMES, CLOSE * np.exp(1e-4 * np.random.default_rng(1).standard_normal(6000)))),
        ("with holes", fingerprint(TIMES, np.where(np.arange(6000) % 7 == 0, np.nan, CLOSE))),
    ],
)
def test_it_is_the_same_series(name: str, other: ReturnFingerprint) -> None:
    assert OWN.is_same(other), name
    assert other.is_same(OWN), name


def test_another_walk_is_another_series_though_it_correlates() -> None:
    other = hours(seed=9)[1]
    assert OWN.is_same(fingerprint(TIMES, other)) is False
    related = CLOSE * other**0.8
    found = OWN.correlation(fingerprint(TIMES, related))
    assert found is not None
    assert 0.6 < found < SAME
    assert OWN.is_same(fingerprint(TIMES, related)) is False


def test_what_shares_too_little_time_cannot_be_told() -> None:
    assert OWN.is_same(fingerprint(TIMES[:300] + 10_000 * HOUR_MS, CLOSE[:300])) is None
    assert OWN.is_same(fingerprint(TIMES, np.ones(6000))) is None
    assert fingerprint(TIMES[:0], CLOSE[:0]).is_same(OWN) is None


def test_a_series_too_short_for_days_is_kept_by_hours_or_minutes() -> None:
    assert OWN.step_ms == 24 * HOUR_MS
    short = fingerprint(TIMES[:600], CLOSE[:600])
    assert short.step_ms == HOUR_MS
    minutes, close = hours(500, step_ms=60_000)
    assert fingerprint(minutes, close).step_ms == 60_000
    assert short.is_same(fingerprint(TIMES[100:700], CLOSE[100:700], "X/Y"))


def test_a_digest_is_of_everything_that_is_kept() -> None:
    assert OWN.digest == fingerprint(TIMES, CLOSE).digest
    assert OWN.digest != fingerprint(TIMES, CLOSE, "A/B").digest != fingerprint(TIMES, 1 / CLOSE).digest
