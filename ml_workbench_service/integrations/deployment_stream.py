"""Deployment stream: one entry for each deployment that went live or failed, for whoever listens."""

import logging

import redis

from ml_workbench_service.contracts.queue import DEPLOYMENTS_STREAM, DeploymentNotice
from ml_workbench_service.exchanges.bounded_redis import BoundedParser

NOTICES_KEPT = 10_000
TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


class DeploymentStream:
    """A writer of notices. The history in the registry is the truth: a notice that cannot be sent is logged."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, parser_class=BoundedParser
        )

    def announce(self, notice: DeploymentNotice) -> bool:
        """Adds one entry; whether it got there."""
        fields = {key: str(value) for key, value in notice.model_dump(mode="json").items()}
        try:
            self._redis.xadd(DEPLOYMENTS_STREAM, fields, maxlen=NOTICES_KEPT, approximate=True)  # type: ignore[arg-type]
        except redis.RedisError as error:
            _log.warning(
                "deployment notice not sent", extra={"deployment_id": notice.deployment_id, "error": str(error)}
            )
            return False
        return True

    def close(self) -> None:
        """Gives the connection back."""
        self._redis.close()
