"""The service on a machine that has no redis-server: it starts and predicts, and has no queue to publish to."""

from common_lib.exceptions import UnavailableError
from ml_workbench_service.integrations import embedded_redis as embedded
from ml_workbench_service.main import main


def nowhere() -> None:
    """There is none."""
    raise UnavailableError("this contestant has no redis-server")


embedded.find_redis_server = nowhere  # type: ignore[problem]

if __name__ == "__main__":
    main()
