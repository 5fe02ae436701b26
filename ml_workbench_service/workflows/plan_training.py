"""Training plan: what is decided before a training starts: family, hyper-parameters, costs, version, estimate.

Everything that can be refused is refused here, with a 422, 409 or 507 now instead of a failed job later.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from common_lib.exceptions import (
    BundleDamagedError,
    DataValidationError,
    InsufficientMemoryError,
    UpstreamError,
    UpstreamTimeoutError,
    VersionExistsError,
)
from ml_workbench_service import families as families  # loading the package registers every family
from ml_workbench_service.contracts.contract import NAME_PATTERN, TIMEFRAMES_MS, iso, iso_of_ms, to_ms, utc_now
from ml_workbench_service.contracts.evaluation import Loss
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.market import FeatureStore
from ml_workbench_service.contracts.training import ModelType, PrimaryReference, Target, TrainingEstimate, TrainRequest
from ml_workbench_service.evaluation.growing_samples import level
from ml_workbench_service.learning.bundle.listing import next_version
from ml_workbench_service.learning.data import windows
from ml_workbench_service.learning.data.windows import FEWEST_WINDOWS
from ml_workbench_service.learning.interfaces.dataset import followed_request
from ml_workbench_service.learning.interfaces.differentials import YEAR_MS, power_before
from ml_workbench_service.learning.interfaces.family import AnyFamily, family_for
from ml_workbench_service.learning.interfaces.task import task_for, task_of
from ml_workbench_service.learning.networks.followed.estimates import FollowerEstimate
from ml_workbench_service.market.calendar import DAY_MS, WEEK_OPEN_MS, num_expected_bars
from ml_workbench_service.market.costs import check_costs
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.resources import Workbench
from ml_workbench_service.training import tasks as tasks
from ml_workbench_service.training.named_features import check_bars, check_set_name, resolve_features
from ml_workbench_service.training.primaries import estimate_of, primary_of, with_the_primarys

RESOLVED = ("family", "timeframe", "hyperparameters", "features", "expressions")
"""Of a plan: what it made of the request's own words."""
NOT_COMPARED = {
    "name", "model_id", "version", "notes", "force", "priority", "start_date", "end_date", "as_of",
    "family", "timeframe", "hyperparameters", "features",
}  # fmt: skip
"""Of a request, when it is set beside an earlier one: what it is called, its dates, and what stands in the plan."""
WORKER_BYTES = 275_000_000
"""Resident memory of a worker without torch: interpreter, numpy, polars, TA-Lib, onnxruntime; measured."""
ROW_BYTES = 8
SECONDS_PER_HOUR = 3600.0
SHARES_OF_RANGE = (*(percent / 100 for percent in range(95, 5, -5)), 0.05, 0.02, 0.01, 0.005, 0.002)
"""How much of the range is tried where a training is too large, the most first."""
EVALUATION_S = 2.5e-8
"""Of one operation of an expression at one bar: 1.5 ns, once for the training and 15 times for the certificate."""
ROW_COPIES = 4
"""Fetched columns, stacked rows, logarithms and scaled rows live at the same time."""


@dataclass(frozen=True)
class TrainingPlan:
    """A request that can be trained, and where its product will lie."""

    request: TrainRequest
    model_id: str
    version: str
    family: str
    timeframe: str
    hyperparameters: dict[str, Any]  # the defaults filled in
    estimate: TrainingEstimate
    derivation: Derivation  # the features, those of feature sets by their expressions
    primary: PrimaryReference | None = None  # of meta-labelling

    def to_json(self) -> dict[str, Any]:
        """What the job's `request.json` keeps of it, so that the job depends on nothing that may change."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "family": self.family,
            "timeframe": self.timeframe,
            "hyperparameters": self.hyperparameters,
            "features": list(self.derivation.features),
            "expressions": dict(self.derivation.expressions),
            "selected_until_ms": self.derivation.selected_until_ms,
            "estimate": self.estimate.model_dump(),
            **({} if self.primary is None else {"primary": self.primary.model_dump(mode="json")}),
        }


def plan_training(
    request: TrainRequest, workbench: Workbench, *, unfinished: Iterable[JobSpec], max_memory_gb: float
) -> TrainingPlan:
    """Validates a request as far as that goes without data, and reserves a version.

    Args:
        request: the parsed body.
        workbench: for the registry, and for the names of features.
        unfinished: trainings under way; the versions that they will publish are taken.
        max_memory_gb: MAX_TRAINING_MEMORY.

    Raises:
        DataValidationError: family, hyper-parameters, target, feature, costs, range or id are not usable.
        VersionExistsError: the version asked for exists or is being trained.
        InsufficientMemoryError: the estimate is over the limit.
    """
    family = family_for(request.model_type, request.family)(request.hyperparameters)
    asked, primary = request, primary_of(request, workbench.registry)
    if primary is not None:
        request = followed_request(request, primary)
    targets = task_of(request).check(request)
    timeframe = request.timeframe_for(targets)
    derivation = resolve_features(
        request if primary is None else asked, workbench.feature_store, workbench.registry, timeframe=timeframe
    )
    lookback, followed = family.lookback, None
    if primary is not None:
        derivation, primary = with_the_primarys(derivation, workbench.registry, primary)
        followed = estimate_of(workbench.registry, primary)
        lookback += followed.card.lookback - 1
    reads = derivation.features if primary is None else primary.reads
    family.check_features(len(reads))
    family.check_request(request, reads)
    check_costs(request.symbols, request.costs, path="body.costs")
    _check_repeats(request)
    _check_closures(targets, timeframe)
    reach = derivation.history + max((target.horizon for target in targets), default=1)
    _check_range(request, lookback, timeframe, reach=reach)
    model_id = request.model_id or slug(request.name)
    _check_type(request, model_id, workbench)
    estimate = _estimate(request, family, timeframe, derivation, followed)
    if estimate.memory_gb > max_memory_gb:
        raise _too_large(request, family, estimate, max_memory_gb, derivation, followed)
    newest_ms = check_served(
        workbench.feature_store, request.symbols, timeframe,
        start=request.start_date, end=request.end_date, as_of=request.as_of,
    )  # fmt: skip
    check_bars(request, derivation, workbench.feature_store, timeframe=timeframe)
    version = _reserve(request, model_id, workbench, unfinished)
    plan = TrainingPlan(
        asked, model_id, version, family.name, timeframe, family.hyperparameters.model_dump(), estimate, derivation,
        primary,
    )  # fmt: skip
    if newest_ms is not None and not request.force:
        _check_news(plan, workbench, newest_ms)
    return plan


def check_length(duration_s: float, *, max_hours: float | None) -> None:
    """Refuses work that is estimated to last longer than a job may.

    Args:
        duration_s: the estimate.
        max_hours: MAX_JOB_HOURS; None: as long as it takes.

    Raises:
        DataValidationError: `too_long`, with the estimate and the limit in seconds.
    """
    if max_hours is None or duration_s <= max_hours * SECONDS_PER_HOUR:
        return
    raise DataValidationError.at(
        "body",
        f"this job would take about {duration_s / SECONDS_PER_HOUR:.2g} h, over the limit of {max_hours:g} h; ask for "
        "fewer symbols, a shorter range, or fewer epochs, seeds, folds, groups or trials, or raise MAX_JOB_HOURS",
        code="too_long",
        duration_s=round(duration_s, 1),
        limit_s=max_hours * SECONDS_PER_HOUR,
    )


def slug(name: str) -> str:
    """`LSTM Price Predictor` → `lstm_price_predictor`; raises where nothing usable is left."""
    text = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:64]
    if not re.fullmatch(NAME_PATTERN, text):
        raise DataValidationError.at(
            "body.name", "no id can be made of this name; send a `model_id` such as eurusd_lstm"
        )
    return text


def check_served(
    store: FeatureStore,
    symbols: Sequence[str],
    timeframe: str,
    *,
    start: datetime,
    end: datetime,
    as_of: datetime | None = None,
) -> int | None:
    """When the newest bar that the store can serve is known; None of a server that fails now, which the job will meet.

    Raises:
        DataValidationError: no such symbol or timeframe, no bar in the range, or a file that is refused; says what
            there is.
    """
    try:
        tables = store.fetch(
            symbols, timeframe, start_ms=to_ms(start), end_ms=to_ms(end), features=["close"], last=1,
            as_of_ms=None if as_of is None else to_ms(as_of),
        )  # fmt: skip
    except DataValidationError as error:
        raise error.below("body") from error
    except (UpstreamError, UpstreamTimeoutError):
        return None
    return max(int(table.available_at_ms[-1]) for table in tables)


def _check_news(plan: TrainingPlan, workbench: Workbench, newest_ms: int) -> None:
    """Refuses a training that would learn what the newest version has learnt: the same request, and no bar beside.

    Raises:
        DataValidationError: `nothing_new`.
    """
    if not workbench.registry.versions(plan.model_id):
        return
    cards = [card for card in workbench.registry.cards(plan.model_id) if card.status != "archived"]
    if not cards:
        return
    newest = cards[0].version
    try:
        recipe = workbench.registry.recipe(plan.model_id, newest)
        earlier, last_known_ms = TrainRequest.model_validate(recipe["request"]), int(recipe["last_known_ms"])
    except (
        BundleDamagedError,
        ValueError,
        KeyError,
    ):  # set aside, or not by this service
        return
    resolved = [
        ({key: each[key] for key in RESOLVED if key in each}, asked.model_dump(exclude=NOT_COMPARED))
        for each, asked in ((recipe["plan"], earlier), (plan.to_json(), plan.request))
    ]
    adds_none = plan.request.start_date >= earlier.start_date and newest_ms <= last_known_ms
    if resolved[0] == resolved[1] and adds_none:
        raise DataValidationError.at(
            "body.end_date",
            f"version {newest} was trained on this request, and there is no bar after {iso_of_ms(newest_ms)}: train "
            "again when there are news, change the request, or send force: true",
            code="nothing_new",
            version=newest,
        )


def _check_repeats(request: TrainRequest) -> None:
    """Several seeds, and walking forward, need a type whose models can be averaged and judged.

    Raises:
        DataValidationError: this type's cannot.
    """
    task = task_for(request.model_type)
    if len(request.seeds) > 1 and not task.averages_seeds:
        raise DataValidationError.at(
            "body.seeds", f"{request.model_type.value} makes columns, which have no mean; send one seed"
        )
    if request.cv is not None and request.cv.scheme == "combinatorial_purged" and not task.learns_apart:
        raise DataValidationError.at(
            "body.cv.scheme",
            f"{request.model_type.value} learns by walking through time with a position in its hand, which no stretch "
            "left out may interrupt; send walk_forward",
        )
    if _num_folds(request) and not task.has_verdict:
        raise DataValidationError.at(
            "body.cv", f"{request.model_type.value} bets on nothing that could be judged step by step; leave `cv` out"
        )


def _num_folds(request: TrainRequest) -> int:
    """Trainings of the further validation; 0 where none is asked for."""
    return 0 if request.cv is None else request.cv.num_trainings


def _check_closures(targets: Sequence[Target], timeframe: str) -> None:
    """Refuses horizons of which most labels would be dropped: on intraday bars none may span the weekend.

    Raises:
        DataValidationError: over half of a week's labels would span it; the message names what would do.
    """
    bar_ms = TIMEFRAMES_MS[timeframe]
    num_bars = WEEK_OPEN_MS // bar_ms
    for target in targets:
        if bar_ms >= DAY_MS or 2 * target.horizon <= num_bars:
            continue
        days = -(-target.horizon * bar_ms // DAY_MS)
        raise DataValidationError.at(
            "body.target",
            f"of {target.name} on {timeframe} bars {min(1.0, target.horizon / num_bars):.0%} of the labels would span "
            f"the weekend and be dropped; look at most {num_bars // 2} bars ahead, or as far on daily bars: "
            f"{target.measure}_{days}d",
            code="horizon_spans_closures",
            longest=num_bars // 2,
        )


def _check_range(request: TrainRequest, lookback: int, timeframe: str, *, reach: int) -> None:
    """Refuses ranges that hold too few windows even if a bar opened at every moment of the clock.

    Args:
        lookback: rows of a window.
        reach: bars that the features look back and the label ahead.

    Raises:
        DataValidationError: the range is too short, or begins after today.
    """
    if request.start_date > utc_now():
        raise DataValidationError.at("body.start_date", "no bar is known yet in this range; start in the past")
    span_ms = to_ms(request.end_date) - to_ms(request.start_date)
    bars = -(-span_ms // TIMEFRAMES_MS[timeframe])
    num_windows = len(request.symbols) * max(0, bars - (lookback - 1) - reach)
    if num_windows < sum(FEWEST_WINDOWS.values()):
        raise DataValidationError.at(
            "body.start_date",
            f"this range has at most {num_windows} windows of {lookback} bars, whose expressions and label "
            f"reach over {reach} more, and a training needs {sum(FEWEST_WINDOWS.values())}; ask for a longer range or "
            "a shorter lookback",
            code="too_few_windows",
        )


def _check_type(request: TrainRequest, model_id: str, workbench: Workbench) -> None:
    """All versions of a model are of one type: who names it, or serves it, relies on that.

    Raises:
        DataValidationError: the id belongs to a model of another type.
    """
    if request.model_type is ModelType.FEATURE_ENGINEERING:
        check_set_name(model_id)
    for version in workbench.registry.versions(model_id)[:1]:
        known = workbench.registry.card(model_id, version).type
        if known != request.model_type.value:
            raise DataValidationError.at(
                "body.model_id",
                f"{model_id} is a model of type {known}; send another `model_id` for one of type "
                f"{request.model_type.value}",
            )


def _reserve(request: TrainRequest, model_id: str, workbench: Workbench, unfinished: Iterable[JobSpec]) -> str:
    taken = workbench.registry.taken(model_id)
    taken += [
        spec.plan["version"]
        for spec in unfinished
        if spec.plan.get("model_id") == model_id and spec.kind in (JobKind.TRAIN, JobKind.EXPERIMENT)
    ]
    if request.version is None:
        return next_version(taken)
    if request.version in taken:
        raise VersionExistsError(
            f"version {request.version} of {model_id} exists, is being trained or was purged; "
            "leave `version` out to get the next one"
        )
    return request.version


def _estimate(
    request: TrainRequest, family: AnyFamily, timeframe: str, derivation: Derivation, followed: FollowerEstimate | None
) -> TrainingEstimate:
    bars = num_expected_bars(to_ms(request.start_date), to_ms(request.end_date), timeframe)
    num_rows, num_features = bars * len(request.symbols), len(derivation.features)
    num_read = len(derivation.base_columns) if derivation.expressions else 0  # columns that no network sees
    data = num_rows * (num_features + num_read + 8) * ROW_BYTES * ROW_COPIES
    split, num_train = request.validation_split, int(num_rows * (1 - request.validation_split))
    if followed is None:
        own_bytes, once_s = family.memory_bytes(num_rows, num_features), family.seconds(num_train)
    else:
        own_bytes = followed.memory_bytes(family, num_rows)
        once_s = followed.seconds(family, num_windows=num_train, num_rows=num_rows, split=split)
    memory = WORKER_BYTES + family.library_bytes + data + own_bytes
    repeats = len(request.seeds) + 0.75 * _num_folds(request)  # folds see half to all of the data before the test part
    return TrainingEstimate(
        memory_gb=round(memory / 1e9, 2),
        duration_s=round(once_s * repeats + num_rows * derivation.work * EVALUATION_S, 1),
        num_windows=max(0, bars - derivation.history) * len(request.symbols),
        power=_power(request, num_test=bars * split * windows.SPLIT_SHARES["test"]),
    )


def _power(request: TrainRequest, *, num_test: float) -> float | None:
    """Of the first test of a recipe, from the range alone; None where nothing is bet on."""
    if not task_for(request.model_type).has_verdict:
        return None
    target = next(iter(request.parsed_targets()), None)
    span_ms = to_ms(request.end_date) - to_ms(request.start_date)
    loss: Loss = "net_return"
    if target is not None:
        loss = "brier" if target.classes else "squared_error" if target.needs_price else "qlike"
    found = power_before(
        loss,
        num_moments=num_test,
        horizon=1 if target is None else target.horizon,
        years=span_ms * request.validation_split * windows.SPLIT_SHARES["test"] / YEAR_MS,
        alpha=level(0),
        is_nested=loss != "brier",  # `undirected` and persistence are not
    )
    return round(found, 3)


def _too_large(
    request: TrainRequest,
    family: AnyFamily,
    estimate: TrainingEstimate,
    max_memory_gb: float,
    derivation: Derivation,
    followed: FollowerEstimate | None,
) -> InsufficientMemoryError:
    """The error with the cheapest change that fits; `details.change` is what to merge into the request's body."""
    timeframe = request.timeframe_for(request.parsed_targets())
    change: dict[str, Any] | None = None
    for change in _smaller(request, family):
        settings = family.hyperparameters.model_dump() | change.get("hyperparameters", {})
        asked = request.model_copy(update={"start_date": change.get("start_date", request.start_date)})
        smaller = _estimate(asked, type(family)(settings), timeframe, derivation, followed)
        if smaller.memory_gb <= max_memory_gb:
            break
    else:
        change = None
    if change is not None and "start_date" in change:
        change = change | {"start_date": iso(change["start_date"])}
    plain = {**(change or {}), **(change or {}).get("hyperparameters", {})}
    words = ", ".join(f"{name}: {value}" for name, value in plain.items() if name != "hyperparameters")
    return InsufficientMemoryError(
        f"this training would need about {estimate.memory_gb} GB, over the limit of {max_memory_gb:g} GB; "
        + (f"send {words}, or raise MAX_TRAINING_MEMORY" if change else "raise MAX_TRAINING_MEMORY"),
        details={"estimate": estimate.model_dump(), "limit_gb": max_memory_gb, "change": change},
    )


def _smaller(request: TrainRequest, family: AnyFamily) -> Iterator[dict[str, Any]]:
    """Changes of the request, the cheapest first: a smaller batch, a shorter lookback, fewer units, all three, fewer
    bars, and everything at once."""
    plain = family.hyperparameters.model_dump()
    halved: dict[str, list[int]] = {}
    for name in ("batch_size", "lookback", *(name for name in plain if name.endswith("_units"))):
        value = plain.get(name, 0)
        while value > max(16, family.min_window):
            value = max(value // 2, 16, family.min_window)
            halved.setdefault(name, []).append(value)
    for name, values in halved.items():
        yield from ({"hyperparameters": {name: value}} for value in values)
    together: dict[str, int] = {}
    for name, values in halved.items():
        for value in values:
            together[name] = value
            yield {"hyperparameters": dict(together)}
    for smallest in ({}, {"hyperparameters": together}):
        for share in SHARES_OF_RANGE:
            start = request.end_date - (request.end_date - request.start_date) * share
            yield {**smallest, "start_date": start.replace(microsecond=0)}
