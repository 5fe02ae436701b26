"""Strategy engine client: it learns of a deployment, and of its end, by one POST each, and may refuse.

Each POST has an Idempotency-Key: sent twice, it is sent once.
"""

from typing import Any

from common_lib.exceptions import UpstreamError, UpstreamTimeoutError
from common_lib.logging import correlation_id
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.models import ModelCard

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 10.0
RETRIES = 2


class StrategyEngine:
    """A client of one engine; blocking, called from a thread."""

    def __init__(self, url: str, *, api_key: str | None, own_url: str) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._own_url = own_url.rstrip("/")

    def register(self, deployment: Deployment, card: ModelCard, *, instead_of: str | None = None) -> None:
        """Announces a deployment; sending it twice under its id is sending it once.

        Args:
            instead_of: a deployment that was announced after it and did not go live: it is announced anew.

        Raises:
            UpstreamError: the engine refused it, or cannot be reached.
            UpstreamTimeoutError: the engine did not answer in time.
        """
        key = deployment.id if instead_of is None else f"{deployment.id}-instead-of-{instead_of}"
        status = self._post("register", self._body(deployment, card), deployment, key=key, verb="deploy")
        if not 200 <= status < 300:
            raise _refused("deployment", status)

    def unregister(self, deployment: Deployment, *, name: str) -> None:
        """Tells that a deployment has ended; an engine that does not know it (404) has nothing to end.

        Raises:
            UpstreamError: the engine refused it, or cannot be reached.
            UpstreamTimeoutError: the engine did not answer in time.
        """
        parameters = {"model_id": deployment.model_id, "version": deployment.version, "digest": deployment.digest}
        body = {"name": name, "type": "ml_enhanced", "parameters": parameters}
        status = self._post("unregister", body, deployment, key=f"undeploy-{deployment.id}", verb="undeploy")
        if not 200 <= status < 300 and status != 404:
            raise _refused("undeployment", status)

    def _post(self, path: str, body: dict[str, Any], deployment: Deployment, *, key: str, verb: str) -> int:
        """The status of the engine's answer; `verb` is what to do again where there is none."""
        import httpx

        from ml_workbench_service.exchanges.bounded_http import BoundedTransport, within

        headers = {"Idempotency-Key": key, "X-Correlation-ID": correlation_id() or deployment.correlation_id}
        if self._api_key:
            headers["X-API-Key"] = self._api_key
        transport = BoundedTransport(retries=RETRIES)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        url, encoded = f"{self.url}/api/v1/strategies/{path}", httpx.Headers(headers, encoding="utf-8")
        try:
            with (
                within(READ_TIMEOUT_S),
                httpx.Client(transport=transport, timeout=timeout, follow_redirects=False, trust_env=False) as client,
                client.stream("POST", url, json=body, headers=encoded) as answer,
            ):
                return answer.status_code  # of the body nothing is asked
        except httpx.TimeoutException as error:
            raise UpstreamTimeoutError(
                f"the strategy engine did not answer in time; see whether it runs, then {verb} again"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UpstreamError(
                f"the strategy engine cannot be reached; check STRATEGY_ENGINE_URL, then {verb} again"
            ) from error

    def _body(self, deployment: Deployment, card: ModelCard) -> dict[str, Any]:
        return {
            "name": card.name,
            "type": "ml_enhanced",
            "instruments": list(card.symbols),
            "timeframe": card.timeframe,
            "parameters": {
                "model_id": card.id,
                "version": card.version,
                "digest": card.digest,
                "predict_url": f"{self._own_url}/api/v1/models/{card.id}/predict",
                "scaling_factor": deployment.scaling_factor,
                "monitoring_level": deployment.monitoring_level,
            },
        }


def _refused(what: str, status: int) -> UpstreamError:
    return UpstreamError(
        f"the strategy engine refused the {what} with status {status}; its log has the reason",
        details={"status": status},
    )
