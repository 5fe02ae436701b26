"""Adaptive intervals on history: how the intervals of a live version would have fared over a replay's bars.

The same accounting as live (`serving/interval_outcomes.py`), in memory, beside it: records keep the published
interval, and no live interval moves. Only bars that taught the model nothing count: the test part's, and later ones.
"""

from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.jobs import HistoricalIntervalReport
from ml_workbench_service.contracts.prediction import Interval, PredictionRecord
from ml_workbench_service.contracts.recordings import OUT_OF_SAMPLE
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.calibration.adaptive_intervals import PUBLISHED, Widening
from ml_workbench_service.serving.interval_outcomes import IntervalSeries, StatedInterval, VersionIntervals
from ml_workbench_service.serving.live_intervals import MEASURES
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Question


class HistoricalIntervals:
    """Of one version over one replay, in the order of its bars."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        target = None if model.card.target is None else parse_target(model.card.target)
        self._target = target if target is not None and target.measure in MEASURES else None
        self._adaptive, self._published = _Counted(model), _Counted(model)
        self._widths = [0.0, 0.0]

    def follow(self, question: Question, record: PredictionRecord) -> None:
        """One bar: what its price makes known first, then its interval as live ones would be widened, and as it is."""
        target, price = self._target, question.price
        if target is None or price is None or record.sample not in OUT_OF_SAMPLE:
            return
        model, as_of_ms = self._model, question.as_of_ms
        context = model.context(question.symbol, price=price, bar_volatility=question.bar_volatility)
        scale = model.decoder.interval_scale(context)
        for number, counted in enumerate((self._adaptive, self._published)):
            series = counted.state.lanes.setdefault(question.symbol, IntervalSeries())
            if series.standing(as_of_ms, model.timeframe_ms) != "new":
                continue
            before = counted.state.num_outcomes
            counted.state.price(series, target, as_of_ms=as_of_ms, price=price, bar_ms=model.timeframe_ms)
            num_new = counted.state.num_outcomes - before
            counted.num_covered += counted.state.recent[len(counted.state.recent) - num_new :].count("1")
            if scale is not None and scale.is_volatility:
                series.scale = scale.value
            if scale is None or record.interval is None or record.prediction is None:
                continue
            tracker = series.tracker(is_volatility=scale.is_volatility)
            widening = PUBLISHED if counted is self._published else tracker.widening(scale.value)
            interval = _widened(record.prediction, record.interval, widening, may_be_negative=target.needs_price)
            self._widths[number] += interval.upper - interval.lower
            stated = StatedInterval(
                to_ms(record.valid_until), price, series.path, series.run, interval.lower, interval.upper,
                interval.level, widening.lean, scale.is_volatility,
            )  # fmt: skip
            counted.state.expect(
                series, stated, as_of_ms=as_of_ms, bar_ms=model.timeframe_ms, horizon=model.card.horizon
            )

    def report(self) -> HistoricalIntervalReport | None:
        """What became of them; None where no outcome is known."""
        coverage = self._adaptive.state.coverage()
        if not coverage.num_outcomes:
            return None
        return HistoricalIntervalReport(
            level=coverage.level,
            coverage=self._adaptive.num_covered / coverage.num_outcomes,
            published_coverage=self._published.num_covered / self._published.state.num_outcomes,
            width_ratio=self._widths[0] / self._widths[1] if self._widths[1] else None,
            num_outcomes=coverage.num_outcomes,
            factor=coverage.factor,
            num_dropped={**coverage.num_dropped},
        )


class _Counted:
    """A version's intervals, and how many of all outcomes they held: the state itself remembers the newest alone."""

    def __init__(self, model: ServedModel) -> None:
        self.state = VersionIntervals(model.card.id, model.card.version, model.card.digest)
        self.num_covered = 0


def _widened(prediction: float, interval: Interval, widening: Widening, *, may_be_negative: bool) -> Interval:
    """Both ends moved away from the forecast by the same factor, as the decoder does it."""
    lower = prediction - widening.factor * (prediction - interval.lower)
    upper = prediction + widening.factor * (interval.upper - prediction)
    if not may_be_negative:
        lower, upper = max(lower, 0.0), max(upper, 0.0)
    return Interval(level=interval.level, lower=lower, upper=upper)
