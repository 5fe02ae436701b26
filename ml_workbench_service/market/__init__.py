"""Pure numbers of the market: calendar, indicators, targets, costs. No torch."""
