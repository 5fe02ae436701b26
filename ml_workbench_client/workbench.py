"""`Workbench` and `AsyncWorkbench`: the service in a quant's hands.

An attribute reads (`wb.queue`, `model.card`), a call asks or changes something (`wb.models(status="deployed")`,
`model.deploy()`); of the async one both are awaited. `wb.model("id")` and its like ask nothing.
"""

import json
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, Unpack
from urllib.parse import urlsplit

import httpx

from common_lib.exceptions import DataValidationError
from ml_workbench_client import routes
from ml_workbench_client.agents import AgentHandle, DeploymentHandle
from ml_workbench_client.fields import (
    AgentFields,
    ExperimentFields,
    Moment,
    PredictionFilter,
    PriorityName,
    RangeFields,
    ReplayFields,
    ResilienceFields,
    TrainFields,
)
from ml_workbench_client.frames import ARROW, Document, Rows, Table
from ml_workbench_client.job import Experiment, Job
from ml_workbench_client.listing import Listing, listed
from ml_workbench_client.model import Model
from ml_workbench_client.plans import Async, M, Plan, Sync, operation, reading
from ml_workbench_client.routes import query
from ml_workbench_client.sending import Link, Patience, Resource, body_of
from ml_workbench_client.wire import Later, Now
from ml_workbench_service.contracts.agents import DEFAULT_AGENT_ID, Agent, AgentRequest
from ml_workbench_service.contracts.audit import AuditEntry
from ml_workbench_service.contracts.deployment import Deployment, DeploymentStatus, DeploymentTarget
from ml_workbench_service.contracts.experiments import ExperimentRequest, ExperimentSummary
from ml_workbench_service.contracts.importance import ImportancePart
from ml_workbench_service.contracts.jobs import Job as JobState
from ml_workbench_service.contracts.jobs import JobKind, JobStatus, ReplayRequest
from ml_workbench_service.contracts.market import FeatureDescription
from ml_workbench_service.contracts.market_data import FeatureList, LabelSeries
from ml_workbench_service.contracts.models import (
    ModelList,
    ModelOrder,
    ModelStatus,
    ModelSummary,
    ModelTypeList,
    SetAside,
)
from ml_workbench_service.contracts.outcomes import RecordedPrediction
from ml_workbench_service.contracts.queue import DeadLetter, QueueAccounting, Requeued
from ml_workbench_service.contracts.reading_reports import IgnoredFile, Series, SeriesList
from ml_workbench_service.contracts.resilience import FaultList, ResilienceRequest
from ml_workbench_service.contracts.training import JobPriority, ModelType, TrainRequest

DEFAULT_URL = "http://127.0.0.1:8005"
"""Where the service listens unless it is told otherwise."""
TIMEOUT_S = 60.0
KEPT_ALIVE_S = 3.0
"""An idle connection is given up before the service does it (uvicorn: after 5 s): none breaks under a request."""


class Bench(Resource[M], Generic[M]):
    """Everything that a service can be asked; `Workbench` and `AsyncWorkbench` are this, at once or awaited."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.url = link.url

    # ---- trainings and models

    @operation(routes.TRAIN)
    def train(self, request: TrainRequest | None = None, **fields: Unpack[TrainFields]) -> Plan[Job[M]]:
        """Starts a training and returns its job: `wb.train(name="…", model_type="time_series", …).progress()`.

        Args:
            request: the contract's request; keyword arguments lie over it.
            fields: the keys of a training request, by their names.
        """
        answer = yield from self._ask(routes.TRAIN, body=body_of(request, fields))
        return Job[M].of(self._link, json.loads(answer.content))

    @listed()
    def model(self, model_id: str, version: str | None = None) -> Model[M]:
        """A model, or one version of it; asks nothing."""
        return Model[M](self._link, model_id, version)

    @listed(routes.LIST_MODELS)
    def models(
        self,
        *,
        model_type: ModelType | str | None = None,
        status: ModelStatus | None = None,
        symbol: str | None = None,
        order: ModelOrder | None = None,
        limit: int | None = None,
    ) -> Listing[M, ModelSummary]:
        """One line a model: its live version, else its newest; in the order of their ids, or `newest` first."""
        asked = query(model_type=model_type, status=status, symbol=symbol, order=order)
        return self._listing(routes.LIST_MODELS, ModelSummary, asked, limit)

    @reading(routes.LIST_MODELS)
    def set_aside(self) -> Plan[Rows[SetAside]]:
        """Versions that are not served until somebody sees to them, each with its reason and the next step."""
        return Rows((yield from self._read(ModelList, routes.LIST_MODELS, query=query(limit=1))).set_aside)

    @operation(routes.COMPARE)
    def compare(self, *versions: str | Model[M]) -> Plan[Document]:
        """The figures of versions side by side, on the rows that they have in common: `"a@1.0.0"`, or models."""
        names = []
        for each in versions:
            if isinstance(each, Model):
                names.append(f"{each.id}@{(yield from each._version())}")
            else:
                names.append(each)
        return Document((yield from self._read(dict[str, Any], routes.COMPARE, query=query(versions=names))))

    @reading(routes.MODEL_TYPES)
    def model_types(self) -> Plan[ModelTypeList]:
        """The five types, the families installed for each, and their hyper-parameters as JSON Schema."""
        return (yield from self._read(ModelTypeList, routes.MODEL_TYPES))

    # ---- jobs

    @listed()
    def job(self, job_id: str) -> Job[M]:
        """A job by its id; asks nothing."""
        return Job[M](self._link, job_id)

    @listed(routes.LIST_JOBS)
    def jobs(
        self,
        *,
        kind: JobKind | str | None = None,
        status: JobStatus | str | None = None,
        limit: int | None = None,
    ) -> Listing[M, JobState]:
        """All jobs, newest first."""
        return self._listing(routes.LIST_JOBS, JobState, query(kind=kind, status=status), limit)

    @operation(routes.START_EXPERIMENT)
    def search(
        self, request: ExperimentRequest | None = None, **fields: Unpack[ExperimentFields]
    ) -> Plan[Experiment[M]]:
        """Starts an experiment: trials over a search space, scored on the validation part; the winner is published."""
        answer = yield from self._ask(routes.START_EXPERIMENT, body=body_of(request, fields))
        return Experiment[M].of(self._link, json.loads(answer.content))

    @listed()
    def experiment(self, experiment_id: str) -> Experiment[M]:
        """An experiment by its id; asks nothing."""
        return Experiment[M](self._link, experiment_id)

    @listed(routes.LIST_EXPERIMENTS)
    def experiments(self, *, limit: int | None = None) -> Listing[M, ExperimentSummary]:
        """All experiments, newest first."""
        return self._listing(routes.LIST_EXPERIMENTS, ExperimentSummary, {}, limit)

    @operation(routes.REPLAY)
    def replay(self, request: ReplayRequest | None = None, **fields: Unpack[ReplayFields]) -> Plan[Job[M]]:
        """Streams past bars through the predict path into the queue; needs a running agent."""
        answer = yield from self._ask(routes.REPLAY, body=body_of(request, fields))
        return Job[M].of(self._link, json.loads(answer.content))

    @listed(routes.LIST_JOBS)
    def replays(self, *, limit: int | None = None) -> Listing[M, JobState]:
        """All replays, newest first."""
        return self._listing(routes.LIST_JOBS, JobState, {"kind": "replay"}, limit)

    @operation(routes.IMPORTANCE, routes.SHOW_MODEL)
    def importance(
        self,
        model: str | Model[M],
        *,
        part: ImportancePart = "calibration",
        num_repeats: int = 10,
        seed: int = 0,
        priority: JobPriority | PriorityName = "normal",
    ) -> Plan[Job[M]]:
        """Measures what a version's answers lose without each of its columns: `"a@1.0.0"`, or a model; a job.

        On the `test` part every column counts as a hypothesis in all verdicts there from then on.
        """
        model_id, _, version = model.partition("@") if isinstance(model, str) else (model.id, "", model.version)
        version = version or (yield from Model[M](self._link, model_id)._version())
        body = {"part": part, "num_repeats": num_repeats, "seed": seed, "priority": priority}
        answer = yield from self._ask(routes.IMPORTANCE, body=body, model_id=model_id, version=version)
        return Job[M].of(self._link, json.loads(answer.content))

    @operation(routes.TEST_RESILIENCE)
    def test_resilience(
        self, request: ResilienceRequest | None = None, **fields: Unpack[ResilienceFields]
    ) -> Plan[Job[M]]:
        """Floods a queue of its own while faults happen to it, and proves what became of every record."""
        answer = yield from self._ask(routes.TEST_RESILIENCE, body=body_of(request, fields))
        return Job[M].of(self._link, json.loads(answer.content))

    @listed(routes.LIST_JOBS)
    def resilience(self, *, limit: int | None = None) -> Listing[M, JobState]:
        """All resilience tests, newest first."""
        return self._listing(routes.LIST_JOBS, JobState, {"kind": "resilience"}, limit)

    @reading(routes.LIST_FAULTS)
    def faults(self) -> Plan[FaultList]:
        """Every fault that a resilience test can inject."""
        return (yield from self._read(FaultList, routes.LIST_FAULTS))

    # ---- deployments, predictions, agents, queue

    @listed()
    def deployment(self, deployment_id: str) -> DeploymentHandle[M]:
        """A deployment by its id; asks nothing."""
        return DeploymentHandle[M](self._link, deployment_id)

    @listed(routes.LIST_DEPLOYMENTS)
    def deployments(
        self,
        *,
        model_id: str | None = None,
        deployment_target: DeploymentTarget | None = None,
        status: DeploymentStatus | None = None,
        at: Moment | None = None,
        limit: int | None = None,
    ) -> Listing[M, Deployment]:
        """All deployments, newest first; `at` asks for those that served at that moment."""
        asked = query(model_id=model_id, deployment_target=deployment_target, status=status, at=at)
        return self._listing(routes.LIST_DEPLOYMENTS, Deployment, asked, limit)

    @listed(routes.LIST_PREDICTIONS)
    def predictions(self, **wanted: Unpack[PredictionFilter]) -> Listing[M, RecordedPrediction]:
        """What live versions answered and what came true, newest first."""
        limit = wanted.pop("limit", None)
        asked = query(**{name.rstrip("_"): value for name, value in wanted.items()})
        return self._listing(routes.LIST_PREDICTIONS, RecordedPrediction, asked, limit)

    @operation(routes.REPORT_OUTCOME)
    def report_outcome(self, prediction_id: str, *, realised: float, at: Moment) -> Plan[RecordedPrediction]:
        """Says what came true of a prediction, in its target's units; known once, and refused if it differs."""
        return (
            yield from self._read(
                RecordedPrediction,
                routes.REPORT_OUTCOME,
                body={"realised": realised, "at": at},
                prediction_id=prediction_id,
            )
        )

    @listed()
    def agent(self, agent_id: str = DEFAULT_AGENT_ID) -> AgentHandle[M]:
        """An agent by its id; asks nothing."""
        return AgentHandle[M](self._link, agent_id)

    @listed(routes.LIST_AGENTS)
    def agents(self, *, limit: int | None = None) -> Listing[M, Agent]:
        """Every agent that was started once, by id."""
        return self._listing(routes.LIST_AGENTS, Agent, {}, limit)

    @operation(routes.CREATE_AGENT)
    def create_agent(self, request: AgentRequest | None = None, **fields: Unpack[AgentFields]) -> Plan[AgentHandle[M]]:
        """Starts one more agent on the prediction stream."""
        made = yield from self._read(Agent, routes.CREATE_AGENT, body=body_of(request, fields))
        return AgentHandle[M](self._link, made.id)

    @reading(routes.QUEUE)
    def queue(self) -> Plan[QueueAccounting]:
        """The queue's accounting: length, outbox, and each group's counters, whose balance is 0."""
        return (yield from self._read(QueueAccounting, routes.QUEUE))

    @listed(routes.LIST_DEAD_LETTERS)
    def dead_letters(self, *, limit: int | None = None) -> Listing[M, DeadLetter]:
        """Entries that an agent gave up, oldest first, each with the reason."""
        return self._listing(routes.LIST_DEAD_LETTERS, DeadLetter, {}, limit)

    @operation(routes.REQUEUE)
    def requeue(self, letter_id: str) -> Plan[Requeued]:
        """Puts a dead letter back into the queue, for the group that gave it up."""
        return (yield from self._read(Requeued, routes.REQUEUE, letter_id=letter_id))

    @operation(routes.DISCARD)
    def discard(self, letter_id: str) -> Plan[None]:
        """Throws a dead letter away for good."""
        yield from self._ask(routes.DISCARD, letter_id=letter_id)

    @listed(routes.LIST_AUDIT)
    def audit(self, *, limit: int | None = None) -> Listing[M, AuditEntry]:
        """Who changed what, newest first; for keys with the scope `admin`."""
        return self._listing(routes.LIST_AUDIT, AuditEntry, {}, limit)

    # ---- data

    @reading(routes.LIST_SERIES)
    def data(self) -> Plan[SeriesList]:
        """Which bars there are, how each file of them was read, and which files are not, with the reason."""
        series: list[Series] = []
        ignored: tuple[IgnoredFile, ...] = ()
        cursor: str | None = None
        while True:
            asked = query(limit=200, cursor=cursor)
            page = yield from self._read(SeriesList, routes.LIST_SERIES, query=asked)
            series += page.series
            ignored, cursor = ignored or page.ignored, page.next_cursor
            if cursor is None:
                return SeriesList(series=tuple(series), ignored=ignored)

    @reading(routes.LIST_FEATURES)
    def feature_names(self) -> Plan[list[FeatureDescription]]:
        """What the feature store can serve, with parameters."""
        return list((yield from self._read(FeatureList, routes.LIST_FEATURES)).features)

    @reading(routes.LIST_FEATURES)
    def feature_catalogue(self) -> Plan[FeatureList]:
        """What the feature store can serve, the functions of expressions over it, and the sets that ship by name."""
        return (yield from self._read(FeatureList, routes.LIST_FEATURES))

    @operation(routes.READ_FEATURES, routes.READ_FEATURE_BATCH)
    def features(
        self,
        symbols: str | Sequence[str],
        features: Sequence[str] | None = None,
        *,
        timeframe: str,
        **when: Unpack[RangeFields],
    ) -> Plan[Table]:
        """Bars and features of symbols as they were known at a moment (`as_of`, default now), as a table.

        Args:
            symbols: one, or several; each row names its own.
            features: names of `wb.feature_names`, expressions over them such as `zscore(close, 50)`, sets that ship
                (`@alpha158`); default: the bars' own columns.
            timeframe: such as `1h`.
            when: `start_date`, `end_date`, `as_of`.
        """
        if isinstance(symbols, str):
            asked = query(timeframe=timeframe, features=list(features) if features else None, **when)
            answer = yield from self._ask(routes.READ_FEATURES, query=asked, accept=ARROW, symbol=symbols)
            return Table(answer.content, symbols)
        body = {"symbols": list(symbols), "timeframe": timeframe, **{k: v for k, v in when.items() if v is not None}}
        if features is not None:
            body["features"] = list(features)
        answer = yield from self._ask(routes.READ_FEATURE_BATCH, body=body, accept=ARROW)
        return Table(answer.content, ", ".join(symbols))

    @operation(routes.LABELS)
    def labels(
        self, symbol: str, target: str, *, timeframe: str | None = None, k: float | None = None,
        **when: Unpack[RangeFields],
    ) -> Plan[LabelSeries]:  # fmt: skip
        """What a training over this range would see as its target at each bar, and when each label is known."""
        asked = query(target=target, timeframe=timeframe, k=k, **when)
        return (yield from self._read(LabelSeries, routes.LABELS, query=asked, symbol=symbol))

    # ---- the service itself

    @reading(routes.HEALTH)
    def health(self) -> Plan[Document]:
        """Whether it is up, and its version."""
        return Document((yield from self._read(dict[str, Any], routes.HEALTH)))

    @reading(routes.LIVE)
    def live(self) -> Plan[Document]:
        """Whether its process is alive."""
        return Document((yield from self._read(dict[str, Any], routes.LIVE)))

    @reading(routes.READY)
    def ready(self) -> Plan[Document]:
        """Every outside thing with its mode and state."""
        return Document((yield from self._read(dict[str, Any], routes.READY)))

    @reading(routes.METRICS)
    def metrics(self) -> Plan[str]:
        """Prometheus' text."""
        return (yield from self._ask(routes.METRICS, accept="text/plain")).content.decode()

    def _listing(
        self, route: routes.Route, contract: type[Any], asked: dict[str, str], limit: int | None
    ) -> Listing[M, Any]:
        return Listing[M, Any](self._link, route, contract, query=asked, limit=limit)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


class Workbench(Bench[Sync]):
    """The service at an address, every call answered when it returns.

    Args:
        url: its address; default: the environment's WORKBENCH_URL, else this machine's own service.
        api_key: default: the environment's WORKBENCH_API_KEY, else none. It is sent and never shown.
        timeout_s: between two bytes of an answer.
        patience: how often and how long to try again.
        transport: another transport of httpx, such as one for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        address = _address(url)
        self._client = httpx.Client(transport=transport, **_settings(address, api_key, timeout_s))
        super().__init__(Link(Now(self._client), address, patience or Patience()))

    def close(self) -> None:
        """Closes its connections; what it started goes on."""
        self._client.close()

    def __enter__(self) -> "Workbench":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncWorkbench(Bench[Async]):
    """The same for the event loop: calls and attributes are awaited, lists and events read with `async for`."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        patience: Patience | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        address = _address(url)
        self._client = httpx.AsyncClient(transport=transport, **_settings(address, api_key, timeout_s))
        super().__init__(Link(Later(self._client), address, patience or Patience()))

    async def aclose(self) -> None:
        """Closes its connections; what it started goes on."""
        await self._client.aclose()

    async def __aenter__(self) -> "AsyncWorkbench":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _address(url: str | None) -> str:
    """The address without a trailing slash; a key within it is refused, since addresses are shown."""
    address = (url or os.environ.get("WORKBENCH_URL") or DEFAULT_URL).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataValidationError.at("url", "an address begins with http:// or https://, such as " + DEFAULT_URL)
    if parts.username or parts.password:
        raise DataValidationError.at("url", "an address holds no key; send it as api_key, or set WORKBENCH_API_KEY")
    return address


def _settings(address: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    key = api_key or os.environ.get("WORKBENCH_API_KEY")
    host = urlsplit(address).hostname or ""
    return {
        "base_url": address,
        "headers": {"X-API-Key": key.encode()} if key else {},
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
        "limits": httpx.Limits(keepalive_expiry=KEPT_ALIVE_S),
        "trust_env": host not in ("127.0.0.1", "localhost", "::1"),  # no proxy stands before this machine's own
    }
