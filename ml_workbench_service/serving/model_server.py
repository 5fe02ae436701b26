"""`ModelServer`: which version answers, loaded models, and the one line in which networks run (`inference_line.py`).

The deployment history is looked at for each question, every ten milliseconds at most on disk
(`DeploymentHistory.live_lately`), so a swap is the history's appended line: nothing to switch, no request dropped, and
a record's version and outputs come from one immutable `ServedModel`.
"""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common_lib.exceptions import BundleDamagedError, BundleTamperedError
from common_lib.tracing import Place, Stages, here
from ml_workbench_service.accelerators import PROCESSOR, Provider
from ml_workbench_service.contracts.deployment import Deployment, is_monitored
from ml_workbench_service.contracts.ledger import Ledger
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import Answered
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.runs.records import RecordRun, RunRow
from ml_workbench_service.serving.inference_line import InferenceLine
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import ServedModel, load_model
from ml_workbench_service.serving.predict import (
    Admitted,
    Circumstances,
    NetworkOutput,
    Prepared,
    Question,
    admitted,
    answered_single,
    asked_together,
    prepared_together,
)
from ml_workbench_service.serving.runs.answering import answer_run
from ml_workbench_service.serving.runs.questions import QuestionRun

MOST_LOADED = 32
"""Versions in memory that are not live: candidates that somebody asked for by name."""
MOST_LOADED_BYTES = 256 * 1024 * 1024
"""Of their bundles; a live version stays whatever it weighs."""
FEWEST_IN_COLUMNS = 13
"""Single questions that share a run and are answered as columns: for fewer, columns take longer than a record each."""

log = logging.getLogger(__name__)


class Registry(Protocol):
    """What serving needs of a model registry."""

    def card(self, model_id: str, version: str) -> ModelCard:
        """One version's card."""
        ...

    def served_card(self, model_id: str) -> ModelCard:
        """The card that answers where no version is named."""
        ...

    def folder(self, model_id: str, version: str) -> Path:
        """Where a version's bundle lies."""
        ...

    def verify(self, model_id: str, version: str) -> str:
        """Checks every file of a version; its digest, or BundleDamagedError."""
        ...

    def is_purged(self, model_id: str, version: str) -> bool:
        """Whether the version's files were removed for good, by this or another process."""
        ...


@dataclass(frozen=True)
class Chosen:
    """A loaded version and the role in which it answers."""

    model: ServedModel
    deployment: Deployment | None  # set where this version is the live one

    def circumstances(self, correlation_id: str) -> Circumstances:
        """What a live record says of its origin."""
        return Circumstances(
            role="champion" if self.deployment else "candidate",
            correlation_id=correlation_id,
            scaling_factor=self.deployment.scaling_factor if self.deployment else 1.0,
            deployment_id=self.deployment.id if self.deployment else None,
        )


@dataclass(frozen=True, slots=True)
class _Single:
    """One question that was checked."""

    chosen: Chosen
    admitted: Admitted
    correlation_id: str
    keeps: bool
    may_be_row: bool = False
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class _Many:
    """The questions of one batch request to one version."""

    chosen: Chosen
    questions: QuestionRun
    correlation_id: str
    keeps: bool
    place: Place | None = None


def _key(model: ServedModel) -> tuple[str, str, str]:
    """The bundle to which every item of a run belongs, and of which the line remembers what a window costs."""
    return model.card.id, model.card.version, model.card.digest


class ModelServer:
    """Loaded models of one process: each once it is asked for, or about to be live.

    Live versions stay. Of the others there are at most `MOST_LOADED`, of at most `MOST_LOADED_BYTES` in all; the least
    recently used one leaves.

    Args:
        registry: where the versions lie.
        live: a model's live deployment.
        providers: where float32 networks run.
        intervals: what became of live intervals; unless given, it is forgotten with the process.
        ledger: where the live versions' answers are left; None: nowhere.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        live: Callable[[str], Deployment | None],
        providers: Sequence[Provider] = PROCESSOR,
        intervals: LiveIntervals | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.intervals = LiveIntervals() if intervals is None else intervals
        self._ledger = ledger
        self._providers = providers
        self._registry = registry
        self._live = live
        self._models: OrderedDict[tuple[str, str], ServedModel] = OrderedDict()
        self._num_bytes: dict[tuple[str, str], int] = {}
        self._loading = threading.Lock()
        self.line = InferenceLine(self._work)

    def close(self) -> None:
        """Ends the inference thread after the answers at hand, and writes what became of their intervals."""
        self.line.close()
        self.intervals.close()

    @property
    def num_loaded(self) -> int:
        """Versions in memory."""
        return len(self._models)

    @property
    def precision_notes(self) -> tuple[dict[str, str], dict[str, str]]:
        """By loaded version: why float32 answers in int8's place, and why int8 answers unmeasured."""
        loaded = {f"{id} {version}": model for (id, version), model in list(self._models.items())}
        reasons = {name: model.precision_reason for name, model in loaded.items() if model.precision_reason}
        return reasons, {name: model.precision_warning for name, model in loaded.items() if model.precision_warning}

    async def choose(self, model_id: str, version: str | None) -> Chosen:
        """The version asked for, else the live one, else the newest; loaded and verified.

        Raises:
            ModelNotFoundError, VersionNotFoundError: there is none.
            BundleDamagedError: it is set aside: its files, or its signature, are not what was published.
        """
        found = self.chosen_at_once(model_id, version)
        if found is not None:
            return found
        live = self._live(model_id)
        wanted = live.version if version is None and live is not None else version
        return await asyncio.to_thread(self._load, model_id, wanted, live)

    def chosen_at_once(self, model_id: str, version: str | None) -> Chosen | None:
        """The same where that version is loaded; else None."""
        live = self._live(model_id)
        if version is None and live is not None:
            version = live.version
        is_live = live is not None and live.version == version  # then nobody can have purged it
        if not is_live and version is not None and self._registry.is_purged(model_id, version):
            self.forget_purged()
        elif version is not None and (model := self._models.get((model_id, version))) is not None:
            self._was_asked((model_id, version))
            return Chosen(model, live if is_live else None)
        return None

    def warm(self, live: Deployment) -> None:
        """Loads what is about to be live; blocks. Raises what `choose` raises."""
        self._load(live.model_id, live.version, live)

    def _was_asked(self, key: tuple[str, str]) -> None:
        """It is the last to leave."""
        if len(self._models) < 2:
            return
        with suppress(KeyError):  # another thread may just have made room
            self._models.move_to_end(key)

    def forget_purged(self) -> None:
        """Gives back the memory of versions that were purged."""
        for key in list(self._models):
            if self._registry.is_purged(*key):
                self._models.pop(key, None)
                self._num_bytes.pop(key, None)

    def remove_leftovers(self) -> None:
        """Removes what was learnt of the intervals of purged versions, whoever purged them; reads the disk."""
        self.intervals.forget(self._registry.is_purged)

    async def answer(
        self, chosen: Chosen, question: Question, correlation_id: str, *, keeps: bool = True
    ) -> PredictionRecord:
        """One record, by a run of the network that it may share; with `keeps` False neither ledger nor live intervals
        learn of it.

        Raises:
            DataValidationError: too few rows, or a level feature that is not positive.
            UnavailableError: too many are waiting.
        """
        single = _Single(chosen, admitted(chosen.model, question), correlation_id, keeps, place=here())
        record: PredictionRecord = await self.line.ask(_key(chosen.model), single)
        return record

    def join(
        self, chosen: Chosen, question: Question, correlation_id: str, *, keeps: bool,
        told: Callable[[PredictionRecord | RunRow | Exception], None],
    ) -> None:  # fmt: skip
        """`answer`, whose record, or row of a run of many, or error `told` is called with in the event loop. Raises
        what `answer` raises."""
        single = _Single(chosen, admitted(chosen.model, question), correlation_id, keeps, may_be_row=True)
        self.line.join(_key(chosen.model), single, told)

    async def answer_many(
        self, chosen: Chosen, questions: QuestionRun, correlation_id: str, *, keeps: bool = True
    ) -> RecordRun:
        """Records of one version, in float32, in a run of their own; `keeps` as for `answer`."""
        many = _Many(chosen, questions, correlation_id, keeps, here())
        run: RecordRun = await self.line.ask(
            _key(chosen.model), many, num_windows=len(questions), is_single=False
        )  # fmt: skip
        return run

    def _work(self, items: Sequence["_Single | _Many"]) -> list[Any]:
        """One run of the line: single questions of one version, or one batch; a result or an error each."""
        if items[0].place is not None:
            return self._work_traced(items)
        if isinstance(items[0], _Many):
            return [self._answered_many(items[0])]
        singles = [each for each in items if isinstance(each, _Single)]
        model = singles[0].chosen.model
        prepared = prepared_together(model, [each.admitted for each in singles])
        if len(singles) >= FEWEST_IN_COLUMNS and (rows := self._rows(singles, prepared)) is not None:
            return rows
        outputs = asked_together(model, prepared)
        return [self._answered(*each) for each in zip(singles, prepared, outputs, strict=True)]

    def _work_traced(self, items: Sequence["_Single | _Many"]) -> list[Any]:
        """`_work`, each of whose stages becomes a span of every request in the run."""
        stages = Stages([each.place for each in items if each.place is not None])
        stages.passed("wait in line")
        if isinstance(items[0], _Many):
            run = self._answered_many(items[0])
            stages.passed("answer batch", {"ml_workbench.rows": len(run)})
            return [run]
        singles = [each for each in items if isinstance(each, _Single)]
        model = singles[0].chosen.model
        prepared = prepared_together(model, [each.admitted for each in singles])
        stages.passed("scale windows")
        outputs = asked_together(model, prepared)
        stages.passed("run network", {"ml_workbench.windows_together": len(singles)})
        answered = [self._answered(*each) for each in zip(singles, prepared, outputs, strict=True)]
        stages.passed("decode and record")
        return answered

    def _rows(self, singles: Sequence["_Single"], prepared: Sequence[Prepared | Exception]) -> list[Any] | None:
        """Single questions as a run of columns, whose rows are the same records; None where each is answered alone."""
        first, questions = singles[0], [each for each in prepared if isinstance(each, Prepared)]
        if first.chosen.model.precision != "fp32" or len(questions) < len(singles):
            return None
        if not all(each.may_be_row and each.keeps and each.chosen == first.chosen for each in singles):
            return None
        ids = [each.correlation_id for each in singles]
        try:
            many = _Many(first.chosen, QuestionRun.of(questions), "", keeps=True)
            return [*self._answered_many(many, ids).rows()]
        except Exception as error:  # of one of them, which fails alone
            log.warning("a run of %d questions failed, each is answered alone: %s", len(singles), error)
            return None

    def _answered(
        self, single: "_Single", prepared: Prepared | Exception, output: NetworkOutput | Exception
    ) -> PredictionRecord | Exception:
        if isinstance(prepared, Exception):
            return prepared
        if isinstance(output, Exception):
            return output
        chosen = single.chosen
        intervals = self.intervals if single.keeps else self.intervals.aside(chosen.model)
        circumstances = chosen.circumstances(single.correlation_id)
        try:
            found = answered_single(chosen.model, prepared, circumstances, output, intervals=intervals)
            return self._recorded(chosen, found) if single.keeps else found.record
        except Exception as error:  # of this one alone
            return error

    def _answered_many(self, many: "_Many", correlation_ids: Sequence[str] = ()) -> RecordRun:
        chosen = many.chosen
        intervals = self.intervals if many.keeps else self.intervals.aside(chosen.model)
        circumstances = chosen.circumstances(many.correlation_id)
        found = answer_run(chosen.model, many.questions, circumstances, intervals=intervals)
        if correlation_ids:
            found = found.with_correlation_ids(correlation_ids)
        if many.keeps and self._ledger is not None and chosen.deployment is not None:
            is_sampled_N = found.is_monitored(chosen.deployment.monitoring_level)
            self._ledger.record_run(found, chosen.model.making, is_sampled_N=is_sampled_N)
        return found

    def _recorded(self, chosen: Chosen, found: Answered) -> PredictionRecord:
        """The record; a live version's is in the ledger's hands, in the order in which intervals learn of prices."""
        if self._ledger is not None and chosen.deployment is not None:
            is_sampled = is_monitored(found.record.prediction_id, chosen.deployment.monitoring_level)
            self._ledger.record(found, chosen.model.making, is_sampled=is_sampled)
        return found.record

    def _load(self, model_id: str, version: str | None, live: Deployment | None) -> Chosen:
        card = self._registry.served_card(model_id) if version is None else self._registry.card(model_id, version)
        if live is not None and live.version == card.version and live.digest not in ("", card.digest):
            raise BundleTamperedError(
                f"version {card.version} of {model_id} is not what was deployed; "
                "restore its files or deploy another version"
            )
        key = (model_id, card.version)
        with self._loading:
            model = self._models.get(key)
            if model is None:
                try:
                    model = load_model(self._registry.folder(*key), card, providers=self._providers)
                except BundleDamagedError:
                    self._registry.verify(*key)  # says the same, and has the version set aside
                    raise
                self._models[key] = model
                self._num_bytes[key] = bundle_bytes(self._registry.folder(*key))
                self._make_room(key)
        return Chosen(model, live if live is not None and live.version == card.version else None)

    def _make_room(self, newest: tuple[str, str]) -> None:
        """What was not asked for longest leaves, but neither what is live nor what has just come."""
        spare = [key for key in list(self._models) if key != newest and not self._is_live(*key)]
        num_bytes = sum(self._num_bytes.get(key, 0) for key in spare)
        for place, key in enumerate(spare):
            if len(spare) - place < MOST_LOADED and num_bytes <= MOST_LOADED_BYTES:
                break
            self._models.pop(key, None)
            num_bytes -= self._num_bytes.pop(key, 0)

    def _is_live(self, model_id: str, version: str) -> bool:
        live = self._live(model_id)
        return live is not None and live.version == version


def bundle_bytes(folder: Path) -> int:
    """What a version's files weigh, of which its networks are nearly all."""
    return sum(each.stat().st_size for each in folder.iterdir() if each.is_file())
