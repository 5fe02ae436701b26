"""Adaptive conformal intervals in serving: what became of the live versions' intervals, and how far the next ones are
widened for it.

An answer of the live deployed version leaves its interval with its price. The question about the bar at which its
horizon ends brings that bar's price: then the outcome is known, is counted, once, and teaches the symbol's tracker
(`learning/calibration/adaptive_intervals.py`). So an interval never knows its own outcome, and nothing but questions
with prices is needed, whoever sent the features; a ledger of outcomes may say them too (`mature`), whichever comes
first. Features that bring too few closes for a volatility are answered by that of the prices asked with so far.

What is no clean pair of bars teaches nothing and is counted by its reason (`outcomes.REASONS`). Candidates, replays and
questions about the past get the published interval, the same to the bit on every path.

    <folder>/<model_id>/<version>.json      written whole, every `SAVE_EVERY_S` while it changes, and at the end
"""

import errno
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from common_lib.exceptions import UnavailableError
from common_lib.storage import make_folder
from ml_workbench_service.contracts.handover import HandedDrops, HandedInterval, place_of
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.contracts.prediction import Interval
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.guarded_reading import guarded
from ml_workbench_service.learning.calibration.adaptive_intervals import PUBLISHED
from ml_workbench_service.learning.decoders.decoder import IntervalScale
from ml_workbench_service.market.outcomes.realised import Standing
from ml_workbench_service.serving.interval_outcomes import (
    IntervalSeries,
    LiveCoverage,
    Reason,
    StatedInterval,
    VersionIntervals,
)
from ml_workbench_service.serving.model import ServedModel, bar_end_ms

MOST_VERSIONS = 64
"""Versions kept in memory, and so label values of the metrics; the least recently asked one is written and leaves."""
SAVE_EVERY_S = 5.0
"""What a service that is killed may forget: the last thing learnt is written so long after the write before it."""
MEASURES = ("price_change", "log_return", "volatility")
"""Targets whose outcome follows from prices and that have an interval."""
_FILE = TypeAdapter(VersionIntervals)

log = logging.getLogger(__name__)


class LiveContext:
    """One question to the live version: how its interval is widened, and what is left behind for its outcome."""

    __slots__ = (
        "_as_of_ms", "_is_volatility", "_lean", "_model", "_owner", "_price", "_scale", "_series", "_state", "_symbol",
    )  # fmt: skip

    def __init__(
        self,
        owner: "LiveIntervals",
        state: VersionIntervals,
        model: ServedModel,
        symbol: str,
        *,
        as_of_ms: int,
        price: float | None,
    ) -> None:
        self._owner, self._state, self._series = owner, state, state.lanes[symbol]
        self._model, self._symbol = model, symbol
        self._as_of_ms = as_of_ms
        self._price = price  # None: no bar of its own, whose price is known
        self._scale, self._lean, self._is_volatility = 0.0, PUBLISHED.lean, False

    @property
    def bar_volatility(self) -> float | None:
        """Of the prices that questions brought so far, over the horizon to come; None until they are enough."""
        deviation, profile = self._series.deviation, self._model.profiles.get(self._symbol)
        if deviation is None or profile is None:
            return deviation
        opened_ms = _opened_ms(self._model, self._as_of_ms)
        return float(deviation * profile.coming_factor(opened_ms, self._model.card.horizon)[0])

    def widening(self, scale: IntervalScale) -> float:
        """What the interval's half-widths are multiplied by."""
        widening = self._series.tracker(is_volatility=scale.is_volatility).widening(scale.value)
        self._scale, self._lean, self._is_volatility = scale.value, widening.lean, scale.is_volatility
        return widening.factor

    def stated(self, interval: Interval | None, *, due_ms: int, bar_ms: int, horizon: int) -> None:
        """Keeps the record's interval until its outcome is known, when the horizon ends; an abstention has none."""
        if self._price is None:
            return
        series = self._series
        self._owner.stating(self, interval, due_ms=due_ms)
        with self._owner.lock:
            if self._is_volatility:
                series.scale = self._scale
            if interval is not None:
                stated = StatedInterval(
                    due_ms, self._price, series.path, series.run, interval.lower, interval.upper, interval.level,
                    self._lean, self._is_volatility, delay=self._model.delay,
                )  # fmt: skip
                self._state.expect(series, stated, as_of_ms=self._as_of_ms, bar_ms=bar_ms, horizon=horizon)
        self._owner.changed(self._state)

    @property
    def question(self) -> tuple[ServedModel, str, int, float | None]:
        """Model, symbol, moment and the price of its own bar."""
        return self._model, self._symbol, self._as_of_ms, self._price

    @property
    def stated_by(self) -> tuple[float, float, bool]:
        """Scale, lean, and whether that scale is a volatility."""
        return self._scale, self._lean, self._is_volatility


class LiveIntervals:
    """Of all live versions of one process; every method may be called from any thread.

    Args:
        folder: where they are kept over restarts; None keeps them in memory alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.lock = threading.Lock()
        self.on_change: Callable[[str, str], None] = lambda model_id, version: None
        """Told of a version whose next intervals may be others than before."""
        self._unsaved: set[tuple[str, str]] = set()
        self._folder = folder
        self._states: OrderedDict[tuple[str, str], VersionIntervals] = OrderedDict()
        self._targets: dict[str, Target | None] = {}
        self._saved_at: dict[tuple[str, str], float] = {}
        self._forgotten: set[tuple[str, str]] = set()  # no number is used twice, so they stay so
        self._writer: ThreadPoolExecutor | None = None
        self._later: dict[tuple[str, str], threading.Timer] = {}

    def recall(self, versions: Iterable[tuple[str, str]]) -> None:
        """Reads what is on disk of these live versions, so that the metrics show them before anybody asks."""
        with self.lock:
            for key in versions:
                state = None if key in self._states else self._read(*key)
                if state is not None:
                    self._keep(state)

    def ask(self, model: ServedModel, symbol: str, *, as_of_ms: int, price: float | None) -> LiveContext | None:
        """A question to the live version: what its price makes known is learnt first.

        None where the published interval holds: the model states none whose outcome prices tell, or the question is
        about the past. (One about the future was refused where it came in.)
        """
        target = self._target(model.card.target)
        if target is None or symbol not in model.scaler.symbols:
            return None
        with self.lock:
            state = self._of(model)
            series = state.lanes.setdefault(symbol, IntervalSeries())
            standing = series.standing(as_of_ms, model.timeframe_ms)
            if standing == "late":
                self._dropped(state, "late")
                return None
            if standing == "repeated":
                self._dropped(state, "repeated")
                price = None
            if price is not None:
                factor, bar_ms = season_factor(model, symbol, as_of_ms), model.timeframe_ms
                state.price(series, target, as_of_ms=as_of_ms, price=price, bar_ms=bar_ms, factor=factor)
            return LiveContext(self, state, model, symbol, as_of_ms=as_of_ms, price=price)

    def adapts_to(self, model: ServedModel) -> bool:
        """Whether prices tell what became of the intervals that the model states."""
        return self._target(model.card.target) is not None

    def standing(self, model: ServedModel, symbol: str, as_of_ms: int) -> Standing:
        """How a moment stands to the bars that questions brought so far."""
        with self.lock:
            series = self._of(model).lanes.get(symbol)
            return "new" if series is None else series.standing(as_of_ms, model.timeframe_ms)

    def drop(self, model: ServedModel, reason: Reason, num: int) -> None:
        """So many more questions that teach nothing."""
        if num:
            with self.lock:
                self._dropped(self._of(model), reason, num)

    def aside(self, model: ServedModel) -> "LiveIntervals":
        """A copy of what is known of one version, in memory alone: what is asked there is learnt nowhere else."""
        copied, key = LiveIntervals(), (model.card.id, model.card.version)
        with self.lock:
            state = self._states.get(key) or self._read(*key)
            if state is not None:
                copied._states[key] = deepcopy(state)
        return copied

    def mature(self, model_id: str, version: str, symbol: str, as_of_ms: int, realised: float) -> bool:
        """An outcome from elsewhere, for the answer given as of that moment; False where none waits for it any more.

        Args:
            realised: the value of the model's target.
        """
        key = (model_id, version)
        with self.lock:
            state = self._states.get(key) or self._read(*key)
            series = None if state is None else state.lanes.get(symbol)
            stated = None if series is None else series.waiting.pop(as_of_ms, None)
            if state is None or series is None or stated is None:
                return False
            self._keep(state)
            state.count(series, stated, realised)
        self.changed(state)
        return True

    def coverage(self, model_id: str, version: str) -> LiveCoverage | None:
        """Of one version, in memory or on disk; None where it never was live, or states no such intervals."""
        with self.lock:
            state = self._states.get((model_id, version))
            if state is not None:
                return state.coverage()
        state = self._read(model_id, version)
        return None if state is None else state.coverage()

    def __iter__(self) -> Iterator[tuple[str, str, LiveCoverage]]:
        """Model, version and coverage of what is in memory: at most `MOST_VERSIONS`."""
        with self.lock:
            found = [(state.model_id, state.version, state.coverage()) for state in self._states.values()]
        return iter(found)

    def apply(self, item: HandedInterval | HandedDrops, *, place: str) -> None:
        """What a predict worker handed over: the same as if it had been asked here, once.

        Args:
            place: in the stream, as `VersionIntervals.applied` keeps it.
        """
        with self.lock:
            state = self._of_bundle(item.model_id, item.version, item.digest)
            if item_place(place) <= item_place(state.applied):
                return
            state.applied = place
            is_news = isinstance(item, HandedInterval) and _learn(state, item)
            if isinstance(item, HandedDrops):
                state.drop("late", item.late)
                state.drop("repeated", item.repeated)
        if is_news:
            self.changed(state)
        else:
            self.save_soon(state)

    def payload(self, model_id: str, version: str) -> bytes | None:
        """A version's state as its file has it; None where it has none."""
        with self.lock:
            state = self._states.get((model_id, version)) or self._read(model_id, version)
            return None if state is None else _written(state)

    def changed(self, state: VersionIntervals) -> None:
        """Tells of it, and has it written."""
        self.on_change(state.model_id, state.version)
        self.save_soon(state)

    def stating(self, context: LiveContext, interval: Interval | None, *, due_ms: int) -> None:
        """For predict workers, which hand over what is stated."""

    def _dropped(self, state: VersionIntervals, reason: Reason, num: int = 1) -> None:
        """Questions that teach nothing. Needs the lock."""
        state.drop(reason, num)

    def save(self) -> bool:
        """Writes what has changed, now, and waits for it; whether all of it is on disk."""
        with self.lock:
            for key in list(self._later):
                self._later.pop(key).cancel()
            for key in self._unsaved & self._states.keys():
                self._submit(self._states[key])
            writer = self._writer
        if writer is not None:
            writer.submit(lambda: None).result()
        return not self._unsaved

    def save_soon(self, state: VersionIntervals) -> None:
        """Has the state written by a thread of its own: now, or where that was a moment ago, a moment later."""
        if self._folder is None:
            return
        key = (state.model_id, state.version)
        with self.lock:
            self._unsaved.add(key)
            wait_s = self._saved_at.get(key, -SAVE_EVERY_S) + SAVE_EVERY_S - time.monotonic()
            if wait_s <= 0:
                self._submit(state)
            elif key not in self._later:
                timer = self._later[key] = threading.Timer(wait_s, self._save_at_last, (key,))
                timer.daemon = True
                timer.start()

    def _save_at_last(self, key: tuple[str, str]) -> None:
        with self.lock:
            state = self._states.get(key)  # None: it left memory for its file
            if self._later.pop(key, None) is not None and state is not None:
                self._submit(state)

    def forget(self, is_gone: Callable[[str, str], bool]) -> None:
        """Gives up what is in memory and on disk of versions that were purged; those under way are written no more.

        Args:
            is_gone: says it of model and version.
        """
        with self.lock:
            known = {*self._states, *self._on_disk()} - self._forgotten
            gone = {key for key in known if is_gone(*key)}
            self._forgotten |= gone
            for key in gone:
                self._states.pop(key, None)
                self._saved_at.pop(key, None)
                if (timer := self._later.pop(key, None)) is not None:
                    timer.cancel()
            if gone and self._writer is not None:
                self._writer.submit(self._remove, gone)  # behind what it is writing
                return
        self._remove(gone)

    def _on_disk(self) -> Iterator[tuple[str, str]]:
        for path in self._folder.glob("*/*.json") if self._folder is not None else ():
            yield path.parent.name, path.stem

    def _remove(self, gone: Iterable[tuple[str, str]]) -> None:
        for key in gone:
            path = self._path(*key)
            if path is None:
                continue
            try:
                path.unlink(missing_ok=True)
                path.parent.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                    log.warning("live intervals of %s %s were not removed: %s", *key, error)

    def close(self) -> None:
        """Writes every state and ends the writer."""
        with self.lock:
            for timer in self._later.values():
                timer.cancel()
            self._later.clear()
        if self._writer is not None:
            self._writer.shutdown(wait=True)
            self._writer = None
        for state in list(self._states.values()):
            self._write(state)

    def _target(self, name: str | None) -> Target | None:
        """The target whose outcome prices tell; None for classes, actions and scores."""
        if name is None:
            return None
        if name not in self._targets:
            target = parse_target(name)
            self._targets[name] = target if target.measure in MEASURES else None
        return self._targets[name]

    def _of(self, model: ServedModel) -> VersionIntervals:
        """The version's: in memory, else from its file, else new. Needs the lock."""
        return self._of_bundle(model.card.id, model.card.version, model.card.digest)

    def _of_bundle(self, model_id: str, version: str, digest: str) -> VersionIntervals:
        key = (model_id, version)
        state = self._states.get(key) or self._read(*key)
        if state is None or state.digest != digest:
            if state is not None:
                log.warning("live intervals of %s %s are of another bundle and start anew", *key)
            state = VersionIntervals(model_id, version, digest)
        self._keep(state)
        return state

    def _keep(self, state: VersionIntervals) -> None:
        """As the one asked last; the one asked longest ago may have to leave. Needs the lock."""
        key = (state.model_id, state.version)
        self._states[key] = state
        self._states.move_to_end(key)
        if len(self._states) > MOST_VERSIONS:
            old, leaving = self._states.popitem(last=False)
            self._submit(leaving)
            self._saved_at.pop(old, None)

    def _submit(self, state: VersionIntervals) -> None:
        """To the writer. Needs the lock."""
        if self._folder is None:
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="live-intervals")
        self._saved_at[state.model_id, state.version] = time.monotonic()
        self._writer.submit(self._write, state)

    def _path(self, model_id: str, version: str) -> Path | None:
        return None if self._folder is None else self._folder / model_id / f"{version}.json"

    def _write(self, state: VersionIntervals) -> None:
        """The whole file or none of it; a disk that refuses costs the memory of some outcomes, not the service."""
        key = (state.model_id, state.version)
        path = self._path(*key)
        with self.lock:
            self._unsaved.discard(key)
            payload = _written(state)
        if path is None or key in self._forgotten:
            return
        try:
            make_folder(path.parent)
            write_whole(path, payload)
        except (OSError, UnavailableError) as error:
            with self.lock:
                self._unsaved.add(key)
            log.warning("live intervals of %s %s were not written: %s", state.model_id, state.version, error)

    def _read(self, model_id: str, version: str) -> VersionIntervals | None:
        """What the file says; None, with a line in the log, where it is torn or about something else."""
        path = self._path(model_id, version)
        if path is None or (model_id, version) in self._forgotten:
            return None
        state = guarded(path, _FILE.validate_json)
        if state is None:
            return None
        if (state.model_id, state.version) != (model_id, version):
            log.warning("live intervals of %s %s start anew: their file is another's", model_id, version)
            return None
        return state


def season_factor(model: ServedModel, symbol: str, as_of_ms: int) -> float:
    """Of the bar that ends at a moment: how much more usual moves are in it than on average."""
    profile = model.profiles.get(symbol)
    return 1.0 if profile is None else float(profile.factor(_opened_ms(model, as_of_ms))[0])


def item_place(place: str) -> tuple[int, int, int]:
    """An item's place in the stream, `<entry id>/<number in it>`, as it compares; (0, 0, 0) before the first."""
    entry_id, _, number = place.partition("/")
    return (*place_of(entry_id), int(number or 0))


def _learn(state: VersionIntervals, item: HandedInterval) -> bool:
    """The price, then what was stated; whether it is news. As `LiveIntervals.ask` and `LiveContext.stated` do it."""
    series = state.lanes.setdefault(item.symbol, IntervalSeries())
    standing = series.standing(item.as_of_ms, item.bar_ms)
    if standing != "new":
        state.drop(standing)
        return False
    state.price(
        series, item.target, as_of_ms=item.as_of_ms, price=item.price, bar_ms=item.bar_ms, factor=item.factor
    )  # fmt: skip
    if item.is_volatility:
        series.scale = item.scale
    if item.lower is not None and item.upper is not None and item.level is not None:
        stated = StatedInterval(
            item.due_ms, item.price, series.path, series.run, item.lower, item.upper, item.level, item.lean,
            item.is_volatility, delay=item.delay,
        )  # fmt: skip
        state.expect(series, stated, as_of_ms=item.as_of_ms, bar_ms=item.bar_ms, horizon=item.horizon)
    return True


def state_of(payload: bytes) -> VersionIntervals:
    """What `LiveIntervals.payload` gave; raises pydantic's ValidationError."""
    return _FILE.validate_json(payload)


def _written(state: VersionIntervals) -> bytes:
    """As JSON; without the place in the stream where there is none, as versions before predict workers wrote it."""
    return _FILE.dump_json(state, exclude=None if state.applied else {"applied"})


def _opened_ms(model: ServedModel, as_of_ms: int) -> Ints:
    """(1,) the opening of the bar that ends at a moment."""
    return np.array([bar_end_ms(model, as_of_ms) - model.timeframe_ms])
