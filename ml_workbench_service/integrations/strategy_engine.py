"""Strategy engine client: the engine learns of a deployment by one POST, with an Idempotency-Key, and may refuse."""

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
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._own_url = own_url.rstrip("/")

    def register(self, deployment: Deployment, card: ModelCard) -> None:
        """Announces a deployment; sending it twice under its id is sending it once.

        Raises:
            UpstreamError: the engine refused it, or cannot be reached.
            UpstreamTimeoutError: the engine did not answer in time.
        """
        import httpx

        headers = {
            "Idempotency-Key": deployment.id,
            "X-Correlation-ID": correlation_id() or deployment.correlation_id,
        }
        if self._api_key:
            headers["X-API-Key"] = self._api_key
        transport = httpx.HTTPTransport(retries=RETRIES)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            with httpx.Client(transport=transport, timeout=timeout, follow_redirects=False) as client:
                answer = client.post(
                    f"{self._url}/api/v1/strategies/register",
                    json=self._body(deployment, card),
                    headers=httpx.Headers(headers, encoding="utf-8"),
                )
        except httpx.TimeoutException as error:
            raise UpstreamTimeoutError(
                "the strategy engine did not answer in time; see whether it runs, then deploy again"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UpstreamError(
                "the strategy engine cannot be reached; check STRATEGY_ENGINE_URL, then deploy again"
            ) from error
        if not answer.is_success:
            raise UpstreamError(
                f"the strategy engine refused the deployment with status {answer.status_code}; its log has the reason",
                details={"status": answer.status_code},
            )

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
