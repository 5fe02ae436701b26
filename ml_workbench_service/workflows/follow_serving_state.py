"""Following the serving state: which version of each model a predict worker answers with.

A version is loaded before it answers, while the one before it goes on; so a swap costs no request anything. Where Redis
is away the history file of the registry says what is live, as in a single process.
"""

import logging
import threading
import time
from collections.abc import Callable

from pydantic import ValidationError

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.replicas import News
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.replicas.serving_state import ServingStateReader

BLOCK_MS = 500
PAUSE_S = 0.2

log = logging.getLogger(__name__)


class ServingStateFollower:
    """One thread of a predict worker; `live` may be called from any.

    Args:
        reader: of Redis; None: there is none, the history is all there is.
        warm: loads a version that goes live.
        adopt: takes over what the control process says of a version's intervals.
    """

    def __init__(
        self,
        reader: ServingStateReader | None,
        history: DeploymentHistory,
        *,
        warm: Callable[[Deployment], None],
        adopt: Callable[[bytes], None],
    ) -> None:
        self._reader, self._history = reader, history
        self._warm, self._adopt = warm, adopt
        self._live: dict[str, Deployment] = {}
        self._is_following = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_news: Callable[[], None] = lambda: None
        """Told, in this thread, that news are in force."""
        self.news_number = 0
        self.delay_s = 0.0
        """From the newest news' being written to its being in force here, by the machine's clock."""

    def live(self, model_id: str) -> Deployment | None:
        """What is served of a model, if anything."""
        if self._is_following:
            return self._live.get(model_id)
        return self._history.live_lately(model_id)

    @property
    def follows(self) -> str:
        """By what: `redis`, or the `history` file while Redis is away."""
        return "redis" if self._is_following else "history"

    def start(self) -> None:
        """Loads all that is live, then follows."""
        if not self._look(block_ms=1):
            for each in self._history.everything():
                if each.status == "live":
                    self._warmed(each)
        self._thread = threading.Thread(target=self._run, name="serving-state", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, half a second later at most."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._reader is not None:
            self._reader.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._look(block_ms=BLOCK_MS):
                self._stopping.wait(PAUSE_S)

    def _look(self, *, block_ms: int) -> bool:
        """Whether Redis has the state."""
        if self._reader is None:
            return False
        try:
            news = self._reader.news(block_ms=block_ms)
            if news is not None:
                self._take(news)
                self.on_news()
        except PlatformError as error:
            if self._is_following:
                log.warning("what is live is read from the history file meanwhile: %s", error.message)
            self._is_following = False
            return False
        except Exception:  # the next look may go well
            log.exception("news of what is live were not understood")
            return False
        if not self._is_following:
            log.info("what is live is followed through Redis")
        self._is_following = True
        return True

    def _take(self, news: News) -> None:
        for name, value in news.fields.items():
            if name.startswith("intervals:") and value is not None:
                self._adopt(value)
        live = {} if news.is_whole else dict(self._live)
        for name, value in news.fields.items():
            kind, _, model_id = name.partition(":")
            if kind != "live":
                continue
            if value is None:
                live.pop(model_id, None)
                continue
            try:
                deployment = Deployment.model_validate_json(value)
            except ValidationError as error:
                log.error("the deployment of %s in Redis cannot be read: %s", model_id, error)
                continue
            self._warmed(deployment)
            live[model_id] = deployment
        self._live = live
        self.news_number = news.number
        self.delay_s = max(0.0, time.time() - int(news.place.partition("-")[0]) / 1000)

    def _warmed(self, deployment: Deployment) -> None:
        if (before := self._live.get(deployment.model_id)) is not None and before.version == deployment.version:
            return
        try:
            self._warm(deployment)
        except PlatformError as error:  # whoever asks it is told the same
            log.error("%s %s is live and cannot be loaded: %s", deployment.model_id, deployment.version, error.message)
