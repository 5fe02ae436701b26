"""The protocol over gRPC, on a port of its own (`GRPC_PORT`), in the service's event loop. Loaded where it is on alone.

What a call must bring, and what it gets, is as over HTTP: `x-api-key` and `x-correlation-id` are metadata; without an
API_KEY loopback alone is answered, messages have at most 16 MiB, and calls are counted among the requests.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc

from common_lib.exceptions import AuthenticationError, DataValidationError, PlatformError, UnavailableError
from common_lib.logging import CORRELATION_PATTERN, correlated, new_correlation_id
from common_lib.redaction import redacted
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.operations import OPERATIONS
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.errors import UnexpectedError
from ml_workbench_service.api.inference_protocol.grpc_settings import GrpcSettings
from ml_workbench_service.api.inference_protocol.inference import (
    Wanted,
    infer,
    is_ready,
    model_metadata,
    server_metadata,
)
from ml_workbench_service.api.inference_protocol.messages import METHODS, SERVICE, messages
from ml_workbench_service.api.middleware import is_loopback
from ml_workbench_service.contracts.inference_protocol import MOST_DIMENSIONS
from ml_workbench_service.contracts.tensors import DTYPES, Tensor, of_bytes, of_values, refused

MOST_BYTES = 16 * 1024 * 1024
GRACE_S = 5.0
CODES: dict[int, grpc.StatusCode] = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By the status of the error; any other is INTERNAL."""
AS_OVER_HTTP = {
    "ServerLive": "GET /v2/health/live",
    "ServerReady": "GET /v2/health/ready",
    "ModelReady": "GET /v2/models/{model_id}/ready",
    "ServerMetadata": "GET /v2",
    "ModelMetadata": "GET /v2/models/{model_id}",
    "ModelInfer": "POST /v2/models/{model_id}/infer",
}
"""The operation that each call is: a key needs the same scope."""
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where a datatype's values stand; FP16 has bytes alone."""

log = logging.getLogger(__name__)


class GrpcServer:
    """The server of one running service.

    Args:
        service: what answers.
        gate: who may call what; where no key is needed, calls from elsewhere are refused.
    """

    def __init__(self, service: AppState, gate: Gate) -> None:
        self._service, self._gate = service, gate
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, settings: GrpcSettings) -> None:
        """Listens; without keys on loopback alone.

        Raises:
            UnavailableError: another process has the port, or a certificate cannot be read.
        """
        host, port = settings.host, settings.port
        if not self._gate.is_guarded and host != "::1":
            host = "127.0.0.1"
        limits = [("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_send_message_length", -1)]
        server = grpc.aio.server(options=[*limits, ("grpc.so_reuseport", 0)])
        kinds = messages()
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, {name: self._handler(kinds, name) for name in METHODS})]
        )
        place = f"[{host}]" if ":" in host else host
        try:
            self.port = _bind(server, f"{place}:{port}", settings)
        except RuntimeError as error:
            raise UnavailableError(
                f"port {port} of {host} cannot be listened on; set GRPC_PORT to another, or to 0 for none"
            ) from error
        await server.start()
        self._server = server
        log.info("the inference protocol is spoken over gRPC at %s:%d", place, self.port)

    async def stop(self) -> None:
        """Takes no call more, and waits a moment for those at hand."""
        if self._server is not None:
            await self._server.stop(GRACE_S)

    def _handler(self, kinds: Any, name: str) -> grpc.RpcMethodHandler:
        work = _Calls(self._service, kinds).by_name[name]
        route = f"/{SERVICE}/{name}"

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            begun_s = time.perf_counter()
            told = _told(context.invocation_metadata() or ())
            offered = told.get("x-correlation-id", "")
            identifier = offered if CORRELATION_PATTERN.fullmatch(offered) else new_correlation_id()
            with correlated(identifier):
                try:
                    self._check(name, context.peer(), told.get("x-api-key"))
                    found, error = await work(request), None
                except PlatformError as raised:
                    found, error = None, raised
                except Exception as raised:
                    log.exception("unexpected error", exc_info=raised)
                    found, error = None, UnexpectedError("an unexpected error; it is in the service log, please report")
                status = 200 if error is None else error.status
                self._service.metrics.count_answer("GRPC", route, status, time.perf_counter() - begun_s)
                context.set_trailing_metadata((("x-correlation-id", identifier),))
                if error is not None:
                    if error.status >= 500:
                        log.error(error.message, extra={"error_code": error.error_code})
                    code = CODES.get(error.status, grpc.StatusCode.INTERNAL)
                    await context.abort(code, redacted(error.message), (("x-correlation-id", identifier),))
                return found

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=getattr(kinds, f"{name}Request").FromString,
            response_serializer=getattr(kinds, f"{name}Response").SerializeToString,
        )

    def _check(self, name: str, peer: str, key: str | None) -> None:
        address = _address(peer)
        if not self._gate.is_guarded and address and not is_loopback({"client": (address, 0)}):
            raise AuthenticationError("without an API_KEY the service answers loopback only; set API_KEY")
        sent = None if key is None else key.encode("latin-1")
        self._gate.admit(sent, address=address, operation=OPERATIONS[AS_OVER_HTTP[name]])


def _bind(server: grpc.aio.Server, place: str, settings: GrpcSettings) -> int:
    """Opens the port, with the certificates of HTTP where it has some."""
    if settings.tls_cert is None or settings.tls_key is None:
        return int(server.add_insecure_port(place))
    try:
        pair = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
        root = None if settings.tls_client_ca is None else settings.tls_client_ca.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"a certificate for gRPC cannot be read ({error}); correct TLS_CERT and its like"
        ) from error
    credentials = grpc.ssl_server_credentials([pair], root_certificates=root, require_client_auth=root is not None)
    return int(server.add_secure_port(place, credentials))


def _told(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Metadata by name. A key of other characters than ASCII's comes as the bytes `x-api-key-bin`."""
    found = {name: value if isinstance(value, str) else value.decode("latin-1") for name, value in metadata}
    if "x-api-key-bin" in found:
        found.setdefault("x-api-key", found["x-api-key-bin"])
    return found


def _address(peer: str) -> str:
    """Where a call comes from: of `ipv4:127.0.0.1:40000` or `ipv6:%5B::1%5D:40000`; empty of a socket in a folder."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return ""
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


class _Calls:
    """Each call: from its message to that of the answer."""

    def __init__(self, service: AppState, kinds: Any) -> None:
        self._service, self._kinds = service, kinds
        self.by_name: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
        }

    async def server_live(self, request: Any) -> Any:
        return self._kinds.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any) -> Any:
        return self._kinds.ServerReadyResponse(ready=not self._service.stopping.is_set())

    async def model_ready(self, request: Any) -> Any:
        ready = await is_ready(self._service, request.name, request.version or None)
        return self._kinds.ModelReadyResponse(ready=ready)

    async def server_metadata(self, request: Any) -> Any:
        return self._kinds.ServerMetadataResponse(**server_metadata().model_dump())

    async def model_metadata(self, request: Any) -> Any:
        found = await model_metadata(self._service, request.name, request.version or None)
        return self._kinds.ModelMetadataResponse(**found.model_dump())

    async def model_infer(self, request: Any) -> Any:
        inferred = await infer(self._service, _wanted(request))
        # as the request had its values: a client that reads one form alone sends that form
        is_typed = not request.raw_input_contents and any(each.HasField("contents") for each in request.inputs)
        answer = self._kinds.ModelInferResponse(
            model_name=inferred.model, model_version=inferred.version, id=request.id
        )
        for tensor in inferred.outputs:
            said = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if is_typed:
                values = [each.encode() for each in tensor.values] if tensor.datatype == "BYTES" else (
                    tensor.values.reshape(-1).tolist()  # type: ignore[union-attr]
                )  # fmt: skip
                getattr(said.contents, CONTENTS[tensor.datatype]).extend(values)
            else:
                answer.raw_output_contents.append(tensor.raw())
        return answer


def _wanted(request: Any) -> Wanted:
    """The request with its tensors decoded."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise DataValidationError.at(
            "raw_input_contents",
            f"there are {len(raw)} raw contents for {len(request.inputs)} inputs; send one of each",
        )
    tensors = [_tensor(each, raw[place] if raw else None) for place, each in enumerate(request.inputs)]
    parameters = {name: _value(each) for name, each in request.parameters.items()}
    outputs = [each.name for each in request.outputs]
    return Wanted(request.model_name, request.model_version or None, tensors, parameters, outputs)


def _tensor(sent: Any, raw: bytes | None) -> Tensor:
    if sent.datatype != "BYTES" and sent.datatype not in DTYPES:
        raise refused(sent.name, f"{sent.name}: a datatype is BYTES, {', '.join(DTYPES)}")
    if len(sent.shape) > MOST_DIMENSIONS or any(each < 1 for each in sent.shape):
        raise refused(sent.name, f"{sent.name}: a shape has at most {MOST_DIMENSIONS} dimensions, each 1 or more")
    if raw is not None:
        if sent.contents.ByteSize():  # empty ones come along from some clients
            raise refused(sent.name, f"{sent.name} has contents and raw contents; send one of them")
        return of_bytes(sent.name, sent.datatype, sent.shape, raw)
    if sent.datatype == "FP16":
        raise refused(sent.name, f"{sent.name}: FP16 is sent as raw contents alone")
    values = list(getattr(sent.contents, CONTENTS[sent.datatype]))
    if sent.datatype == "BYTES":
        with suppress(UnicodeDecodeError):
            return of_values(sent.name, sent.datatype, sent.shape, [each.decode() for each in values])
        raise refused(sent.name, f"{sent.name}: texts are UTF-8")
    return of_values(sent.name, sent.datatype, sent.shape, values)


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)
