"""What the control process does for predict workers and replicas: it says what is to be served, and applies what they
hand over.

Order of an end: the workers first, then what they left is applied, then the ledger closes.
"""

import logging
import threading
import time
from collections.abc import Callable

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.replicas import ReplicaReport
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.replicas.handover import HandoverStream
from ml_workbench_service.integrations.replicas.presence import Presence
from ml_workbench_service.integrations.replicas.serving_state import ServingStateWriter
from ml_workbench_service.runtime.predict_workers import PredictWorkers
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.workflows.apply_handover import HandoverApplier
from ml_workbench_service.workflows.publish_serving_state import ServingStatePublisher

IN_FORCE_S = 1.0
LOOK_S, LOOK_AT_REPLICAS_S = 0.002, 0.01

log = logging.getLogger(__name__)


class PredictControl:
    """Two threads.

    Args:
        keys: the public keys with which replicas verify bundles.
        workers: those of this machine; None: there are none.
    """

    def __init__(
        self, redis_url: str, history: DeploymentHistory, ledger: PredictionLedger, intervals: LiveIntervals, *,
        keys: Callable[[], bytes], workers: PredictWorkers | None,
    ) -> None:  # fmt: skip
        self._history, self._ledger, self._intervals, self._workers = history, ledger, intervals, workers
        self._presence = Presence(redis_url)
        self.applier = HandoverApplier(HandoverStream(redis_url), ledger, intervals)
        self.publisher = ServingStatePublisher(
            ServingStateWriter(redis_url), history, intervals, self._presence,
            keys=keys, applied=lambda: self.applier.place,
        )  # fmt: skip

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
        workers = self._workers
        while workers is not None and time.monotonic() < deadline:
            if all(each.news_number >= self.publisher.news_number for each in workers.reports):
                break
            time.sleep(LOOK_S)
        while time.monotonic() < deadline and not self._is_in_force_elsewhere():
            time.sleep(LOOK_AT_REPLICAS_S)

    def _is_in_force_elsewhere(self) -> bool:
        """In every replica that lives; those that cannot be heard follow when they can."""
        epoch, number = self.publisher.epoch, self.publisher.news_number
        try:
            return all(each.epoch == epoch and each.news_number >= number for each in self.replicas())
        except PlatformError:
            return True

    def replicas(self) -> list[ReplicaReport]:
        """Replicas that live, as they last reported; raises UnavailableError where Redis is away."""
        return self._presence.replicas()

    def stop(self) -> None:
        """After the workers have ended."""
        self._ledger.feed = None
        self._history.on_append = lambda: None
        self.applier.stop()
        self.publisher.stop()
        self._presence.close()


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
