"""Policy rates of central banks at the end of each year, in percent: how large a pair's carry could have been.

Default swaps charge a financing on either side and leave the interest differential out, since it has changed its sign
in most pairs. So a gain that is to count must survive the largest differential of its range against it, every night
(`largest_differential`). For that the size must be right, not the day: of each year both its ends are looked at, and
the higher of one bank's is set against the lower of the other's.

From the banks' announced decisions: Federal Reserve (upper end of the federal funds target), ECB (main refinancing),
Bank of Japan (call rate, from 2016 on current accounts), Bank of England (Bank Rate), Swiss National Bank (middle of
the Libor target, from 2019 policy rate), Reserve Bank of Australia (cash rate), Bank of Canada (overnight target),
Reserve Bank of New Zealand (official cash rate), Sveriges Riksbank (repo, now policy rate), Norges Bank (sight
deposits), Danmarks Nationalbank (certificates of deposit, before 2009 lending), Narodowy Bank Polski (reference rate),
Česká národní banka (two-week repo), Magyar Nemzeti Bank (base rate, in 2022 the one-day deposit that led),
Central Bank of the Republic of Türkiye (one-week repo, before 2010 overnight borrowing, in 2017 the late window),
South African Reserve Bank (repo) and Banco de México (overnight target, from its first year). Currencies and years that
are not here have no bound: a gain in them counts only with swaps of the user's own.

The figures were entered by hand. They have not been compared with the Bank for International Settlements' data set of
central bank policy rates (WS_CBPOL), which collects the same decisions: rest no more on them than a bound.
"""

from collections.abc import Mapping

from ml_workbench_service.contracts.contract import normal_symbol

FIRST_YEAR = 1999
_BY_YEAR_END: Mapping[str, tuple[float | None, ...]] = {
    "USD": (5.5, 6.5, 1.75, 1.25, 1.0, 2.25, 4.25, 5.25, 4.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.75, 1.5,
            2.5, 1.75, 0.25, 0.25, 4.5, 5.5, 4.5, 3.75),
    "EUR": (3.0, 4.75, 3.25, 2.75, 2.0, 2.0, 2.25, 3.5, 4.0, 2.5, 1.0, 1.0, 1.0, 0.75, 0.25, 0.05, 0.05, 0.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 2.5, 4.5, 3.15, 2.15),
    "JPY": (0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, -0.1, -0.1, -0.1,
            -0.1, -0.1, -0.1, -0.1, -0.1, 0.25, 0.75),
    "GBP": (5.5, 6.0, 4.0, 4.0, 3.75, 4.75, 4.5, 5.0, 5.5, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.5, 0.75,
            0.75, 0.1, 0.25, 3.5, 5.25, 4.75, 3.75),
    "CHF": (1.75, 3.5, 1.75, 0.75, 0.25, 0.75, 1.0, 2.0, 2.75, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, -0.25, -0.75, -0.75,
            -0.75, -0.75, -0.75, -0.75, -0.75, 1.0, 1.75, 0.5, 0.0),
    "AUD": (5.0, 6.25, 4.25, 4.75, 5.25, 5.25, 5.5, 6.25, 6.75, 4.25, 3.75, 4.75, 4.25, 3.0, 2.5, 2.5, 2.0, 1.5, 1.5,
            1.5, 0.75, 0.1, 0.1, 3.1, 4.35, 4.35, 3.6),
    "CAD": (4.75, 5.75, 2.25, 2.75, 2.75, 2.5, 3.25, 4.25, 4.25, 1.5, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1.0,
            1.75, 1.75, 0.25, 0.25, 4.25, 5.0, 3.25, 2.25),
    "NZD": (5.0, 6.5, 4.75, 5.75, 5.0, 6.5, 7.25, 7.25, 8.25, 5.0, 2.5, 3.0, 2.5, 2.5, 2.5, 3.5, 2.5, 1.75, 1.75, 1.75,
            1.0, 0.25, 0.75, 4.25, 5.5, 4.25, 2.25),
    "SEK": (3.25, 4.0, 3.75, 3.75, 2.75, 2.0, 1.5, 3.0, 4.0, 2.0, 0.25, 1.25, 1.75, 1.0, 0.75, 0.0, -0.35, -0.5, -0.5,
            -0.5, -0.25, 0.0, 0.0, 2.5, 4.0, 2.5, 1.75),
    "NOK": (5.5, 7.0, 6.5, 6.5, 2.25, 1.75, 2.25, 3.5, 5.25, 3.0, 1.75, 2.0, 1.75, 1.5, 1.5, 1.25, 0.75, 0.5, 0.5, 0.75,
            1.5, 0.0, 0.5, 2.75, 4.5, 4.5, 4.0),
    "DKK": (3.3, 5.4, 3.6, 2.95, 2.15, 2.15, 2.4, 3.75, 4.25, 3.75, 1.0, 0.7, 0.3, -0.2, -0.1, -0.05, -0.75, -0.65,
            -0.65, -0.65, -0.75, -0.6, -0.6, 1.75, 3.6, 2.6, 1.6),
    "PLN": (16.5, 19.0, 11.5, 6.75, 5.25, 6.5, 4.5, 4.0, 5.0, 5.0, 3.5, 3.5, 4.5, 4.25, 2.5, 2.0, 1.5, 1.5, 1.5, 1.5,
            1.5, 0.1, 1.75, 6.75, 5.75, 5.75, 4.0),
    "CZK": (5.25, 5.25, 4.75, 2.75, 2.0, 2.5, 2.0, 2.5, 3.5, 2.25, 1.0, 0.75, 0.75, 0.05, 0.05, 0.05, 0.05, 0.05, 0.5,
            1.75, 2.0, 0.25, 3.75, 7.0, 6.75, 4.0, 3.5),
    "HUF": (14.5, 11.75, 9.75, 8.5, 12.5, 9.5, 6.0, 8.0, 7.5, 10.0, 6.25, 5.75, 7.0, 5.75, 3.0, 2.1, 1.35, 0.9, 0.9,
            0.9, 0.9, 0.6, 2.4, 18.0, 10.75, 6.5, 6.5),
    "TRY": (None, None, 59.0, 44.0, 26.0, 18.0, 13.5, 17.5, 15.75, 15.0, 6.5, 6.5, 5.75, 5.5, 4.5, 8.25, 7.5, 8.0,
            12.75, 24.0, 12.0, 17.0, 14.0, 9.0, 42.5, 47.5, 38.0),
    "ZAR": (12.0, 12.0, 9.5, 13.5, 8.0, 7.5, 7.0, 9.0, 11.0, 11.5, 7.0, 5.5, 5.5, 5.0, 5.0, 5.75, 6.25, 7.0, 6.75, 6.75,
            6.5, 3.5, 3.75, 7.0, 8.25, 7.75, 6.75),
    "MXN": (None, None, None, None, None, None, None, None, None, 8.25, 4.5, 4.5, 4.5, 4.5, 3.5, 3.0, 3.25, 5.75, 7.25,
            8.25, 7.25, 4.25, 5.5, 10.5, 11.25, 10.0, 7.0),
}  # fmt: skip


def largest_differential(symbol: str, first_year: int, last_year: int) -> float | None:
    """The pair's largest difference of policy rates in these years, a fraction a year; None where it is not known.

    A year after the last that is here has its rates.
    """
    base, quote = (_BY_YEAR_END.get(currency) for currency in normal_symbol(symbol).split("/"))
    if base is None or quote is None:
        return None
    newest = len(base) - 1
    found = 0.0
    for year in range(min(first_year - FIRST_YEAR, newest), min(last_year - FIRST_YEAR, newest) + 1):
        ends = [(rates[max(year - 1, 0)], rates[year]) for rates in (base, quote)] if year >= 0 else [(None, None)]
        known = [[rate for rate in pair if rate is not None] for pair in ends]
        if any(len(pair) < 2 for pair in known):
            return None
        ours, theirs = known
        found = max(found, max(ours) - min(theirs), max(theirs) - min(ours))
    return found / 100
