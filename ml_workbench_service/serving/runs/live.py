"""Live intervals of a run: each row sees what a single question in its place would see.

Only a bar that the series has not seen teaches it anything, and of a run that are few: what lies more than two bars
back is about the past and learns nothing. Such a row is answered as a single question is (`predict.finish`), which
leaves its interval behind; all others look at what is known by then.

Legend: N questions, M of them that the network was asked.
"""

from collections import Counter
from dataclasses import replace

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.decoders.decoder import DecodingContext, DecodingRun
from ml_workbench_service.market.outcomes.realised import Standing
from ml_workbench_service.serving.live_intervals import LiveContext, LiveIntervals
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Prepared, finish, is_live
from ml_workbench_service.serving.runs.network import NetworkRun
from ml_workbench_service.serving.runs.questions import QuestionRun

_Known = tuple[float, float, Standing]
"""Bar volatility, widening, and how the moment stands to the series."""


def adapted(
    model: ServedModel,
    run: QuestionRun,
    network: NetworkRun,
    contexts: DecodingRun,
    *,
    circumstances: Circumstances,
    intervals: LiveIntervals | None,
) -> DecodingRun:
    """The contexts with the volatility and the widening that the live intervals know, which learn of the prices.

    Args:
        contexts: of the M rows that the network was asked.
    """
    if intervals is None or not is_live(circumstances):
        return contexts
    is_asked_M = ~run.is_historical_N[network.places_M] & (
        run.as_of_ms_N[network.places_M] > model.last_available_at_ms
    )
    if not is_asked_M.any() or not intervals.adapts_to(model):
        return contexts
    return _Learning(model, run, network, contexts, circumstances, intervals).all(np.flatnonzero(is_asked_M).tolist())


class _Learning:
    """The rows of one run, in their order."""

    def __init__(
        self, model: ServedModel, run: QuestionRun, network: NetworkRun, contexts: DecodingRun,
        circumstances: Circumstances, intervals: LiveIntervals,
    ) -> None:  # fmt: skip
        self._model, self._run, self._network, self._contexts = model, run, network, contexts
        self._circumstances, self._intervals = circumstances, intervals
        self._volatility_M: Floats = contexts.bar_volatility_N.copy()
        self._widening_M: Floats = contexts.widening_N.copy()
        self._known: dict[str, dict[tuple[int, float], _Known]] = {}

    def all(self, rows: list[int]) -> DecodingRun:
        """What they see."""
        run, places_M = self._run, self._network.places_M
        rows = sorted(rows, key=places_M.tolist().__getitem__) if (np.diff(places_M) < 0).any() else rows
        symbols, as_of_ms, price = run.symbol.values(), run.as_of_ms_N.tolist(), run.price_N.tolist()
        volatility, drops = self._volatility_M.tolist(), Counter[Standing]()
        places = places_M.tolist()
        for row in rows:
            number = places[row]
            of_symbol = self._known.setdefault(symbols[number], {})
            own = volatility[row]
            key = (as_of_ms[number], own if own == own else -1.0)
            known = of_symbol.get(key)
            if known is None:
                known = self._look(row, number, has_price=price[number] == price[number])
                if known[2] == "new" and price[number] == price[number]:
                    of_symbol.clear()  # it has learnt: what was known no longer holds
                else:
                    of_symbol[key] = known
            else:
                drops[known[2]] += 1
            self._volatility_M[row], self._widening_M[row], _ = known
        self._intervals.drop(self._model, "late", drops["late"])
        self._intervals.drop(self._model, "repeated", drops["repeated"])
        return replace(self._contexts, bar_volatility_N=self._volatility_M, widening_N=self._widening_M)

    def _look(self, row: int, number: int, *, has_price: bool) -> _Known:
        """As a single question would; it learns where its bar is new."""
        question = self._run.question(number)
        standing = self._intervals.standing(self._model, question.symbol, question.as_of_ms)
        live = self._intervals.ask(
            self._model, question.symbol, as_of_ms=question.as_of_ms, price=question.price
        )  # fmt: skip
        context = self._contexts.context(row)
        if live is None:
            return float(self._contexts.bar_volatility_N[row]), 1.0, standing
        if context.bar_volatility is None:
            context = replace(context, bar_volatility=live.bar_volatility)
            question = replace(question, bar_volatility=live.bar_volatility)
        widening = _widening(self._model, context, live)
        if has_price and standing == "new":
            output = self._network.output(row)
            finish(
                self._model, Prepared(question, None, ()), self._circumstances, output=output, precision="fp32",
                live=live,
            )  # fmt: skip
        return np.nan if context.bar_volatility is None else context.bar_volatility, widening, standing


def _widening(model: ServedModel, context: DecodingContext, live: LiveContext) -> float:
    scale = model.decoder.interval_scale(context)
    return 1.0 if scale is None else live.widening(scale)
