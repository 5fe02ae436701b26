"""One error tree and one body for every failure of the platform's services.

    PlatformError                        500
    ├── DataValidationError              422   details.errors[] = {path, message, code}
    │   └── IdempotencyMismatchError     422   the same key came with another body
    ├── AuthenticationError              401
    ├── AuthorizationError               403   details: the scope that the key lacks
    │   └── CrossSiteError                   403   a browser sends it for a page of another origin
    ├── NotFoundError                    404
    │   ├── RouteNotFoundError · ModelNotFoundError · VersionNotFoundError
    │   ├── JobNotFoundError · DeploymentNotFoundError · AgentNotFoundError
    │   ├── DeadLetterNotFoundError · PredictionNotFoundError · SeriesNotFoundError
    │   └── LogNotFoundError
    ├── MethodNotAllowedError            405
    ├── NotAcceptableError               406
    ├── RequestTimeoutError              408   the rest of the request did not come
    ├── ConflictError                    409
    │   ├── NoConsumerError · GateFailedError · NotLiveError
    │   ├── VersionExistsError · OutcomeConflictError
    │   ├── BundleDamagedError                  a version's files cannot be read, or are not what its manifest lists
    │   │   ├── BundleTamperedError             its signature does not verify
    │   │   └── BundleUnsignedError             no key that this service trusts has signed it
    │   ├── StateDamagedError                   a file of the service's own state cannot be read
    │   └── LeaseLostError                      another process consumes for the group
    ├── PayloadTooLargeError             413
    ├── UnsupportedMediaTypeError        415
    ├── MisdirectedError                 421   another process of the service does this; details: its address
    ├── RateLimitError                   429   Retry-After
    ├── HeadersTooLargeError             431
    ├── TrainingError                    500
    │   └── JobCancelled                        somebody asked a job to stop
    ├── PredictionError                  500
    ├── QueueStalledError                500   a replay found no room for too long
    ├── ExtraMissingError                501   details: the package, and the extra of the installation that brings it
    ├── UpstreamError                    502   another server answered with an error or with nonsense
    ├── UnavailableError                 503   Retry-After
    │   ├── QueueFullError                         the prediction queue has no room
    │   └── StorageError                           a folder or a file cannot be read or written
    │       └── StorageFullError         507       the disk, or a quota, has no room
    ├── UpstreamTimeoutError             504
    └── InsufficientMemoryError          507   details: the estimate and the cheapest change that fits

Every error carries a stable `error_code` (the class name in capitals unless the class says otherwise), a sentence
that names the next step, and `details` for programs. A rejected value itself is never echoed.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from common_lib.redaction import redacted, redacted_tree


class PlatformError(Exception):
    """Root of the tree: an HTTP status, a stable code and a sentence with the next step."""

    status: ClassVar[int] = 500
    error_code: ClassVar[str] = "PLATFORM_ERROR"
    correlation_id: str = ""  # of the request that another service answered with this error

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "error_code" not in cls.__dict__:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__.removesuffix("Error"))
            cls.error_code = words.upper()

    def __init__(
        self, message: str, *, details: Mapping[str, Any] | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after_s = retry_after_s

    def kept(self) -> Self:
        """Itself, to be kept as a value: without traceback and causes, whose frames hold whoever keeps it.

        Many such circles wait for the collector, which stops everything when it comes.
        """
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def body(self, correlation_id: str) -> dict[str, Any]:
        """The one JSON body of every failure on the wire."""
        return {
            "error_type": type(self).__name__,
            "error_code": self.error_code,
            "message": redacted(self.message),
            "details": redacted_tree(self.details),
            "correlation_id": correlation_id,
        }


class DataValidationError(PlatformError):
    """The caller's data cannot be used as they are; `details.errors` says where and why."""

    status = 422
    error_code = "DATA_VALIDATION_ERROR"

    @classmethod
    def at(cls, path: str, message: str, *, code: str = "invalid", **details: Any) -> "DataValidationError":
        """An error about one field: `DataValidationError.at("body.symbols", "…")`."""
        errors = [{"path": path, "message": message, "code": code}]
        return cls(message, details={"errors": errors, **details})

    def below(self, place: str) -> "DataValidationError":
        """The same about a part of something larger: `symbols` below `body` is `body.symbols`."""
        errors = [{**each, "path": f"{place}.{each['path']}"} for each in self.details.get("errors", ())]
        return type(self)(self.message, details={**self.details, "errors": errors})


class IdempotencyMismatchError(DataValidationError):
    """An Idempotency-Key was used again with another body."""

    error_code = "IDEMPOTENCY_MISMATCH"


class AuthenticationError(PlatformError):
    """No key, or a wrong one."""

    status = 401
    error_code = "AUTHENTICATION_ERROR"


class AuthorizationError(PlatformError):
    """A known caller who may not do this."""

    status = 403
    error_code = "AUTHORIZATION_ERROR"


class CrossSiteError(AuthorizationError):
    """A page of another origin had a browser send this."""

    error_code = "CROSS_SITE"


class NotFoundError(PlatformError):
    """The thing named does not exist."""

    status = 404
    error_code = "NOT_FOUND"


class RouteNotFoundError(NotFoundError):
    """No such route."""


class ModelNotFoundError(NotFoundError):
    """No model of that id."""


class VersionNotFoundError(NotFoundError):
    """The model has no such version."""


class JobNotFoundError(NotFoundError):
    """No job of that id."""


class DeploymentNotFoundError(NotFoundError):
    """No deployment of that id."""


class AgentNotFoundError(NotFoundError):
    """No agent of that id."""


class DeadLetterNotFoundError(NotFoundError):
    """No dead letter of that id."""


class PredictionNotFoundError(NotFoundError):
    """The ledger has no prediction of that id."""


class SeriesNotFoundError(NotFoundError):
    """The version, or the job, kept no rows of that kind."""


class LogNotFoundError(NotFoundError):
    """The job has no log: no worker has begun with it."""


class NotAcceptableError(PlatformError):
    """None of the formats that the caller accepts is one of the table's."""

    status = 406


class MethodNotAllowedError(PlatformError):
    """The route exists, but not with this method."""

    status = 405


class ConflictError(PlatformError):
    """The present state does not allow this."""

    status = 409


class NoConsumerError(ConflictError):
    """A replay was asked for while no agent is running to consume it."""


class GateFailedError(ConflictError):
    """An enforced deployment gate failed."""


class OutcomeConflictError(ConflictError):
    """The prediction has another outcome already, or can have none."""


class VersionExistsError(ConflictError):
    """That version is published already; published versions never change."""


class BundleDamagedError(ConflictError):
    """A version is set aside: its files cannot be read, or are not what its manifest lists. Others go on."""

    error_code = "BUNDLE_DAMAGED"
    state: ClassVar[Literal["damaged", "tampered", "unsigned"]] = "damaged"


class BundleTamperedError(BundleDamagedError):
    """A version is set aside: its signature does not verify, or it is signed as another version."""

    error_code = "BUNDLE_TAMPERED"
    state = "tampered"


class BundleUnsignedError(BundleDamagedError):
    """A version is set aside: no key that this service trusts has signed it."""

    error_code = "BUNDLE_UNSIGNED"
    state = "unsigned"


class StateDamagedError(ConflictError):
    """One thing of the service's own state is set aside: its file cannot be read. Others go on."""

    error_code = "STATE_DAMAGED"


class NotLiveError(ConflictError):
    """Only the live version's records enter the prediction queue."""


class LeaseLostError(ConflictError):
    """Another process consumes for this group by now; what was asked for has not happened."""


class PayloadTooLargeError(PlatformError):
    """The body is over the size limit."""

    status = 413


class UnsupportedMediaTypeError(PlatformError):
    """The body is not JSON."""

    status = 415


class RequestTimeoutError(PlatformError):
    """The rest of the request did not come in time."""

    status = 408


class HeadersTooLargeError(PlatformError):
    """The request's headers are too many, or too long."""

    status = 431


class MisdirectedError(PlatformError):
    """A predict replica was asked for what the control plane alone does."""

    status = 421


class RateLimitError(PlatformError):
    """Too many requests."""

    status = 429


class TrainingError(PlatformError):
    """A training run failed."""

    error_code = "TRAINING_ERROR"


class JobCancelled(TrainingError):
    """Raised inside a job's work at the first report after a cancellation was asked for."""

    error_code = "JOB_CANCELLED"


class QueueStalledError(PlatformError):
    """A replay found no room in the prediction queue for too long."""


class PredictionError(PlatformError):
    """A prediction failed inside the service."""

    error_code = "PREDICTION_ERROR"


class ExtraMissingError(PlatformError):
    """What was asked for needs a package that this installation was made without."""

    status = 501


class UpstreamError(PlatformError):
    """Another server answered with an error, or with something that is not its contract."""

    status = 502
    error_code = "UPSTREAM_ERROR"


class UnavailableError(PlatformError):
    """Something this request needs is not there at the moment."""

    status = 503


class QueueFullError(UnavailableError):
    """The prediction queue has no room for a record that must not be dropped."""


class StorageError(UnavailableError):
    """A folder or a file of the service cannot be read or written at the moment."""


class StorageFullError(StorageError):
    """The disk, or the quota, under a folder of the service is full; nothing was left half-done."""

    status = 507


class UpstreamTimeoutError(PlatformError):
    """Another server did not answer in time."""

    status = 504


class InsufficientMemoryError(PlatformError):
    """The estimate is over the memory limit; `details` has the cheapest change that fits."""

    status = 507
