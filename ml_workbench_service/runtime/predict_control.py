"""What the control process does for its predict workers: it says what is to be served, and applies what they hand over.

Order of an end: the workers first, then what they left is applied, then the ledger closes.
"""

import logging
import threading
import time

from common_lib.exceptions import PlatformError
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.replicas.handover import HandoverStream
from ml_workbench_service.integrations.replicas.serving_state import ServingStateWriter
from ml_workbench_service.runtime.predict_workers import PredictWorkers
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.workflows.apply_handover import HandoverApplier
from ml_workbench_service.workflows.publish_serving_state import ServingStatePublisher

IN_FORCE_S = 1.0
LOOK_S = 0.002

log = logging.getLogger(__name__)


class PredictControl:
    """Two threads."""

    def __init__(
        self, redis_url: str, history: DeploymentHistory, ledger: PredictionLedger, intervals: LiveIntervals,
        workers: PredictWorkers,
    ) -> None:  # fmt: skip
        self._history, self._ledger, self._intervals, self._workers = history, ledger, intervals, workers
        self.publisher = ServingStatePublisher(ServingStateWriter(redis_url), history, intervals)
        self.applier = HandoverApplier(HandoverStream(redis_url), ledger, intervals)

    def start(self) -> None:
        """Publishes what is live, then follows what changes and what is handed over."""
        self._history.on_append = self._deployed
        self._intervals.on_change = self.publisher.intervals_changed
        self._ledger.feed = self.applier.catch_up
        self.publisher.start()
        self.applier.start()

    def _deployed(self) -> None:
        """Who deploys is answered once the version is in force in every worker, or after a second."""
        self.publisher.deployments_changed()
        if threading.current_thread() is threading.main_thread():
            return  # the event loop, which must not wait
        deadline = time.monotonic() + IN_FORCE_S
        while time.monotonic() < deadline:
            if all(each.news_number >= self.publisher.news_number for each in self._workers.reports):
                return
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """After the workers have ended."""
        self._ledger.feed = None
        self._history.on_append = lambda: None
        self.applier.stop()
        self.publisher.stop()


def apply_leftovers(redis_url: str, ledger: PredictionLedger, intervals: LiveIntervals) -> None:
    """What was handed over and not saved when the service ended, also where it has no predict workers any more."""
    stream = HandoverStream(redis_url)
    begun = time.monotonic()
    try:
        num = HandoverApplier(stream, ledger, intervals).recover()
    except PlatformError as error:
        log.warning("whether predict workers left anything is not known: %s", error.message)
        return
    finally:
        stream.close()
    if num:
        log.info("%d parcels that predict workers had left were applied in %.1f s", num, time.monotonic() - begun)
