"""`ModelServer`: which version answers, loaded models, and the one line in which networks run (`inference_line.py`).

The deployment history is looked at for each question, every ten milliseconds at most on disk
(`DeploymentHistory.live_lately`), so a swap is the history's appended line: nothing to switch, no request dropped, and
a record's version and outputs come from one immutable `ServedModel`.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common_lib.exceptions import PredictionError
from ml_workbench_service.accelerators import PROCESSOR, Provider
from ml_workbench_service.contracts.deployment import Deployment, is_monitored
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import Answered, Ledger
from ml_workbench_service.contracts.prediction import PredictionRecord
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
    answered_many,
    answered_single,
    asked_together,
    prepared_together,
)

MOST_LOADED = 32


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


@dataclass(frozen=True, slots=True)
class _Many:
    """The questions of one batch request to one version."""

    chosen: Chosen
    questions: Sequence[Prepared]
    correlation_id: str
    keeps: bool


def _key(model: ServedModel) -> tuple[str, str, str]:
    """The bundle to which every item of a run belongs, and of which the line remembers what a window costs."""
    return model.card.id, model.card.version, model.card.digest


class ModelServer:
    """Loaded models of one process. At most `MOST_LOADED`; the least recently used one leaves.

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
            PredictionError: its files are not what was published.
        """
        live = self._live(model_id)
        if version is None and live is not None:
            version = live.version
        is_live = live is not None and live.version == version  # then nobody can have purged it
        if not is_live and version is not None and self._registry.is_purged(model_id, version):
            self.forget_purged()
        elif version is not None and (model := self._models.get((model_id, version))) is not None:
            self._was_asked((model_id, version))
            return Chosen(model, live if live is not None and live.version == version else None)
        return await asyncio.to_thread(self._load, model_id, version, live)

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
        single = _Single(chosen, admitted(chosen.model, question), correlation_id, keeps)
        record: PredictionRecord = await self.line.ask(_key(chosen.model), single)
        return record

    async def answer_many(
        self, chosen: Chosen, questions: Sequence[Prepared], correlation_id: str, *, keeps: bool = True
    ) -> list[PredictionRecord]:
        """Records of one version, in float32, in a run of their own; `keeps` as for `answer`."""
        many = _Many(chosen, questions, correlation_id, keeps)
        records: list[PredictionRecord] = await self.line.ask(
            _key(chosen.model), many, num_windows=len(questions), is_single=False
        )
        return records

    def _work(self, items: Sequence["_Single | _Many"]) -> list[Any]:
        """One run of the line: single questions of one version, or one batch; a result or an error each."""
        if isinstance(items[0], _Many):
            return [self._answered_many(items[0])]
        singles = [each for each in items if isinstance(each, _Single)]
        model = singles[0].chosen.model
        prepared = prepared_together(model, [each.admitted for each in singles])
        outputs = asked_together(model, prepared)
        return [self._answered(*each) for each in zip(singles, prepared, outputs, strict=True)]

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

    def _answered_many(self, many: "_Many") -> list[PredictionRecord]:
        chosen = many.chosen
        intervals = self.intervals if many.keeps else self.intervals.aside(chosen.model)
        circumstances = chosen.circumstances(many.correlation_id)
        found = answered_many(chosen.model, many.questions, circumstances, intervals=intervals)
        return [self._recorded(chosen, each) if many.keeps else each.record for each in found]

    def _recorded(self, chosen: Chosen, found: Answered) -> PredictionRecord:
        """The record; a live version's is in the ledger's hands, in the order in which intervals learn of prices."""
        if self._ledger is not None and chosen.deployment is not None:
            is_sampled = is_monitored(found.record.prediction_id, chosen.deployment.monitoring_level)
            self._ledger.record(found, chosen.model.making, is_sampled=is_sampled)
        return found.record

    def _load(self, model_id: str, version: str | None, live: Deployment | None) -> Chosen:
        card = self._registry.served_card(model_id) if version is None else self._registry.card(model_id, version)
        if live is not None and live.version == card.version and live.digest not in ("", card.digest):
            raise PredictionError(
                f"version {card.version} of {model_id} is not what was deployed; "
                "restore its files or deploy another version"
            )
        key = (model_id, card.version)
        with self._loading:
            model = self._models.get(key)
            if model is None:
                model = load_model(self._registry.folder(*key), card, providers=self._providers)
                self._models[key] = model
                while len(self._models) > MOST_LOADED:
                    self._models.popitem(last=False)
        return Chosen(model, live if live is not None and live.version == card.version else None)
