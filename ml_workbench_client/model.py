"""`Model`: a model of the service, or one version of it, with everything that can be asked of it and done with it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, Unpack

from common_lib.exceptions import ConflictError, DataValidationError, PlatformError
from ml_workbench_client import routes
from ml_workbench_client.display import facts_html
from ml_workbench_client.errors import error_of_body
from ml_workbench_client.fields import ENQUEUE, DeployFields, Moment, PredictFields
from ml_workbench_client.frames import ARROW, Document, Figure, HtmlPage, Rows, Table, columns_read, is_frame
from ml_workbench_client.listing import Listing, listed
from ml_workbench_client.plans import M, Plan, operation, reading
from ml_workbench_client.routes import query
from ml_workbench_client.sending import Link, Resource, json_of, read
from ml_workbench_client.wire import Now
from ml_workbench_service.contracts.deployment import Deployment, DeployRequest, Undeployment
from ml_workbench_service.contracts.desk_report import DeskReport
from ml_workbench_service.contracts.evaluation import Certificate
from ml_workbench_service.contracts.explanations import ExplainedRecord
from ml_workbench_service.contracts.models import ModelCard, SetAside, VersionList
from ml_workbench_service.contracts.outcomes import MonitoringReport
from ml_workbench_service.contracts.prediction import PredictionRecord, PredictRequest

Features = Mapping[str, Sequence[float]]
"""Columns by name, oldest first; a DataFrame of polars or pandas or a pyarrow table will do as well."""


def is_body(value: Any) -> bool:
    """Whether a dictionary is the body of a request rather than columns, each of which is a list of numbers."""
    return isinstance(value, Mapping) and any(
        isinstance(each, str | Mapping) or not hasattr(each, "__len__") for each in value.values()
    )


class Model(Resource[M], Generic[M]):
    """A model by its id, or one version of it. Making this object asks nothing.

    Without a version, reading is about the live version, else the newest not archived, and so is predicting; what
    changes one version asks for it by name.
    """

    def __init__(self, link: Link, model_id: str, version: str | None = None) -> None:
        super().__init__(link)
        self.id = model_id
        self.version = version
        self._seen: ModelCard | None = None

    @reading(routes.SHOW_MODEL, routes.SHOW_VERSION)
    def card(self) -> Plan[ModelCard]:
        """The full card: what it is, how it was evaluated, the verdict and why."""
        return (yield from self._card())

    @reading(routes.SHOW_MODEL, routes.SHOW_VERSION)
    def certificate(self) -> Plan[Certificate | None]:
        """The leakage certificate: whether anything knew the future, check by check; None on cards older than it."""
        return (yield from self._card()).certificate

    @property
    @listed(routes.LIST_VERSIONS)
    def versions(self) -> Listing[M, ModelCard]:
        """The cards of all versions, newest first."""
        return Listing[M, ModelCard](self._link, routes.LIST_VERSIONS, ModelCard, query={}, path={"model_id": self.id})

    @reading(routes.LIST_VERSIONS)
    def set_aside(self) -> Plan[Rows[SetAside]]:
        """Its versions that are not served until somebody sees to them, newest first, each with the next step."""
        asked = self._read(VersionList, routes.LIST_VERSIONS, query=query(limit=1), model_id=self.id)
        return Rows((yield from asked).set_aside)

    @operation(routes.PREDICT)
    def predict(
        self,
        features: Features | PredictRequest | Any = None,
        *,
        enqueue: ENQUEUE | None = None,
        **asked: Unpack[PredictFields],
    ) -> Plan[PredictionRecord]:
        """One prediction, from columns that are sent along or, without any, from those that the service fetches.

        Args:
            features: a dictionary of columns, oldest first, or a DataFrame, of which the columns that the model reads
                are taken, and as many of its last rows as the model looks back on; or the whole body of a request, as
                the contract or a dictionary. For a frame the card is read first: once, where a version is named.
            enqueue: `never` leaves no trace; `guaranteed` answers once a live record is in the queue.
            asked: `symbol` and `timeframe` (of a model that knows one symbol they may be left out), `as_of`, `price`,
                `position`, `version`.
        """
        body = yield from self._question(features, asked)
        asked_for = query(enqueue=enqueue)
        return (yield from self._read(PredictionRecord, routes.PREDICT, query=asked_for, body=body, model_id=self.id))

    @operation(routes.PREDICT)
    def explain(
        self,
        features: Features | PredictRequest | Any = None,
        *,
        enqueue: ENQUEUE | None = None,
        **asked: Unpack[PredictFields],
    ) -> Plan[ExplainedRecord]:
        """`predict`, and beside the record what each feature added to it (TreeSHAP): of boosted trees.

        Args:
            features, enqueue, asked: as for `predict`.

        Raises:
            DataValidationError: the model's family cannot; the message names those that can.
        """
        body = yield from self._question(features, asked)
        asked_for = query(enqueue=enqueue, explain=True)
        return (yield from self._read(ExplainedRecord, routes.PREDICT, query=asked_for, body=body, model_id=self.id))

    @operation(routes.PREDICT_BATCH)
    def explain_batch(
        self, items: Sequence[Features | PredictRequest | Any], *, enqueue: ENQUEUE | None = None
    ) -> Plan[list[ExplainedRecord | PlatformError]]:
        """`predict_batch`, each record with what each feature added to it, as `explain` has it.

        Args:
            items, enqueue: as for `predict_batch`.
        """
        found = yield from self._batch(items, query(enqueue=enqueue, explain=True))
        return [error_of_body(each, 500) if "error_code" in each else read(ExplainedRecord, each) for each in found]

    @operation(routes.PREDICT_BATCH)
    def predict_batch(
        self, items: Sequence[Features | PredictRequest | Any], *, enqueue: ENQUEUE | None = None
    ) -> Plan[list[PredictionRecord | PlatformError]]:
        """Many predictions in one call, in the order of the items; a bad item fails alone, as an error in its place.

        Args:
            items: each what `predict` takes first.
            enqueue: as for `predict`.
        """
        found = yield from self._batch(items, query(enqueue=enqueue))
        return [error_of_body(each, 500) if "error_code" in each else read(PredictionRecord, each) for each in found]

    @operation(routes.MONITORING)
    def monitoring(
        self, *, version: str | None = None, from_: Moment | None = None, to: Moment | None = None
    ) -> Plan[MonitoringReport]:
        """Of each version that has predicted live: error, direction, coverage, calibration, drift, live verdict."""
        asked = query(version=version or self.version, to=to, **{"from": from_})
        return (yield from self._read(MonitoringReport, routes.MONITORING, query=asked, model_id=self.id))

    @operation(routes.VERSION_SERIES, routes.SHOW_MODEL)
    def series(self, part: Literal["test", "calibration", "validation"] = "test") -> Plan[Table]:
        """Row by row what the version was judged on: price, realised, forecast, interval, position and what it paid."""
        version = yield from self._version()
        answer = yield from self._ask(
            routes.VERSION_SERIES, query=query(part=part), accept=ARROW, model_id=self.id, version=version
        )
        return Table(answer.content, f"{self.id} {version}, {part}")

    @operation(routes.LIST_FIGURES, routes.SHOW_MODEL)
    def figures(self) -> Plan[Document]:
        """The figures that there are of this version."""
        version = yield from self._version()
        return Document((yield from self._read(dict[str, Any], routes.LIST_FIGURES, model_id=self.id, version=version)))

    @operation(routes.FIGURE, routes.SHOW_MODEL)
    def figure(self, name: str) -> Plan[Figure]:
        """One figure, `equity` or `calibration` for instance: notebooks draw it, `to_plotly()` makes it plotly's."""
        version = yield from self._version()
        found = yield from self._read(dict[str, Any], routes.FIGURE, model_id=self.id, version=version, name=name)
        return Figure(found)

    @operation(routes.REPORT, routes.SHOW_MODEL)
    def report(self) -> Plan[HtmlPage]:
        """Everything about the version on one page, which opens without network: shown, or kept by `save(path)`."""
        version = yield from self._version()
        answer = yield from self._ask(routes.REPORT, accept="text/html", model_id=self.id, version=version)
        return HtmlPage(answer.content.decode())

    @operation(routes.DESK_REPORT, routes.SHOW_MODEL)
    def desk_report(self) -> Plan[DeskReport]:
        """What a desk asks of the test part: rank correlation, turnover, drawdowns, months, slices, capacity."""
        version = yield from self._version()
        return (yield from self._read(DeskReport, routes.DESK_REPORT, model_id=self.id, version=version))

    @operation(routes.DEPLOY, routes.LIST_VERSIONS)
    def deploy(self, request: DeployRequest | None = None, **fields: Unpack[DeployFields]) -> Plan[Deployment]:
        """Makes a version live, after the gates: this object's, the one named, else the newest not archived.

        The target is `local` unless `deployment_target` names another.
        """
        given = {**({} if request is None else json_of(request)), **json_of(dict(fields))}
        if "version" not in given:
            given["version"] = self.version or (yield from self._newest())
        body = {"deployment_target": "local", **given}
        return (yield from self._read(Deployment, routes.DEPLOY, body=body, model_id=self.id))

    @operation(routes.UNDEPLOY)
    def undeploy(self) -> Plan[Undeployment]:
        """Nothing of this model is live any more; agents go flat, and the target is told."""
        return (yield from self._read(Undeployment, routes.UNDEPLOY, model_id=self.id))

    @operation(routes.REMOVE_VERSION)
    def archive(self) -> Plan[ModelCard]:
        """Takes this version out of the candidates; its files stay. The live one is refused."""
        version = self._named("archive()")
        return (yield from self._read(ModelCard, routes.REMOVE_VERSION, model_id=self.id, version=version))

    @operation(routes.RESTORE_VERSION)
    def restore(self) -> Plan[ModelCard]:
        """Makes this archived version a candidate again."""
        version = self._named("restore()")
        return (yield from self._read(ModelCard, routes.RESTORE_VERSION, model_id=self.id, version=version))

    @operation(routes.REMOVE_VERSION, routes.PURGE_MODEL)
    def purge(self, *, confirm: str | None = None) -> Plan[None]:
        """Removes the files of this archived version, or of the whole undeployed model, for good.

        Its figures in the multiple-testing log, the deployment history and the ledger stay.

        Args:
            confirm: the model's id; needed for a whole model, and for a version that has ever been live.
        """
        if self.version is None:
            yield from self._ask(routes.PURGE_MODEL, query=query(confirm=confirm), model_id=self.id)
        else:
            asked = query(purge=True, confirm=confirm)
            yield from self._ask(routes.REMOVE_VERSION, query=asked, model_id=self.id, version=self.version)

    def _card(self) -> Plan[ModelCard]:
        if self.version is None:
            self._seen = yield from self._read(ModelCard, routes.SHOW_MODEL, model_id=self.id)
        else:
            path = {"model_id": self.id, "version": self.version}
            self._seen = yield from self._read(ModelCard, routes.SHOW_VERSION, **path)
        return self._seen

    def _known_card(self) -> Plan[ModelCard]:
        """The card for what never changes of it: of a named version read once, else of the one that answers now."""
        return self._seen if self._seen is not None and self.version is not None else (yield from self._card())

    def _version(self) -> Plan[str]:
        """This object's version, else the one that is live or newest."""
        return self.version or (yield from self._card()).version

    def _newest(self) -> Plan[str]:
        cards = yield from self.versions._rows(None)
        for card in cards:
            if card.status != "archived":
                return card.version
        raise ConflictError(f"every version of {self.id} is archived; restore() one, or train a new one")

    def _named(self, what: str) -> str:
        if self.version is None:
            raise DataValidationError.at(
                "version", f'{what} is about one version; name it: wb.model({self.id!r}, "1.0.0").{what}'
            )
        return self.version

    def _with_version(self, body: dict[str, Any]) -> dict[str, Any]:
        is_open = self.version is not None and "version" not in body and "version_id" not in body
        return {**body, "version": self.version} if is_open else body

    def _batch(self, items: Sequence[Any], asked_for: Mapping[str, str]) -> Plan[list[dict[str, Any]]]:
        """The answers to many questions, as they came."""
        bodies = []
        for item in items:
            bodies.append((yield from self._question(item, {})))
        answer = yield from self._ask(
            routes.PREDICT_BATCH, query=dict(asked_for), body={"items": bodies}, model_id=self.id
        )
        found: list[dict[str, Any]] = json.loads(answer.content)["predictions"]
        return found

    def _question(self, features: Any, asked: Mapping[str, Any]) -> Plan[dict[str, Any]]:
        """The body of one prediction."""
        given = {name: value for name, value in json_of(dict(asked)).items() if value is not None}
        if isinstance(features, PredictRequest) or is_body(features):
            return self._with_version({**json_of(features), **given})
        if features is None:
            return self._with_version((yield from self._fetched(given)))
        if is_frame(features):
            card = yield from self._known_card()
            features = columns_read(features, card)
        context = {name: given.pop(name) for name in ("symbol", "timeframe") if name in given}
        body = {"inputs": json_of(features), **given}
        return self._with_version({**body, "context": context} if "symbol" in context else body)

    def _fetched(self, given: dict[str, Any]) -> Plan[dict[str, Any]]:
        """A body for which the service fetches the columns; symbol and timeframe may be the card's."""
        if "symbol" in given and "timeframe" in given:
            return given
        card = yield from self._known_card()
        if "symbol" not in given and len(card.symbols) > 1:
            raise DataValidationError.at(
                "symbol", f"{self.id} knows several symbols; name one of them: {', '.join(card.symbols)}"
            )
        return {"symbol": card.symbols[0], "timeframe": card.timeframe, **given}

    def __repr__(self) -> str:
        return f"<Model {self.id}{'' if self.version is None else f' {self.version}'}>"

    def _repr_html_(self) -> str | None:
        if not isinstance(self._carrier, Now):
            return None
        try:
            card = self._carrier.run(self._card())
        except PlatformError as error:
            return facts_html(f"Model {self.id}", {"state": error.message})
        return facts_html(
            f"{card.name} ({card.id} {card.version})",
            {
                "type": f"{card.type}, {card.family}",
                "status": card.status,
                "verdict": card.evaluation.verdict,
                "reason": card.evaluation.reason,
                "symbols": card.symbols,
                "timeframe": card.timeframe,
                "target": card.target,
                "features": card.features,
                "metrics": card.metrics,
                "warnings": card.warnings,
                "trained": card.created_at,
            },
        )
