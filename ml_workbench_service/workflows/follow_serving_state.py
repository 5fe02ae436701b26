"""Following the serving state: which version of each model a predict worker answers with.

A version is loaded before it answers, while the one before it goes on; so a swap costs no request anything. Where Redis
is away the history file of the registry says what is live, as in a single process.

A replica elsewhere remembers: what was live last goes on while Redis is away, and this thread alone looks at the
history, which may be away too. A version that cannot be loaded there leaves the one before it in force, and is tried
again; a process beside the files has its askers told.
"""

import logging
import threading
import time
from collections.abc import Callable

from pydantic import ValidationError

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.replicas import KEYS, News
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.replicas.serving_state import ServingStateReader

BLOCK_MS = 500
PAUSE_S = 0.2
LOOK_AT_HISTORY_S = 1.0
WARM_AGAIN_S = 1.0

log = logging.getLogger(__name__)


class ServingStateFollower:
    """One thread of a predict worker or a replica; `live` may be called from any.

    Args:
        reader: of Redis; None: there is none, the history is all there is.
        warm: loads a version that goes live.
        adopt: takes over what the control process says of a version's intervals.
        trust: takes over the public keys that it names.
        remembers: of a replica.
    """

    def __init__(
        self,
        reader: ServingStateReader | None,
        history: DeploymentHistory,
        *,
        warm: Callable[[Deployment], None],
        adopt: Callable[[bytes], None],
        trust: Callable[[bytes], None] = lambda payload: None,
        remembers: bool = False,
    ) -> None:
        self._reader, self._history = reader, history
        self._warm, self._adopt, self._trust = warm, adopt, trust
        self._remembers = remembers
        self._cold: dict[str, tuple[Deployment, str]] = {}  # by model, what is live and could not be loaded, and why
        self._tried_s = self._looked_s = float("-inf")
        self.is_known = False
        """Whether it was ever heard what is live, and all of it was tried."""
        self._live: dict[str, Deployment] = {}
        self._is_following = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_news: Callable[[], None] = lambda: None
        """Told, in this thread, that news are in force."""
        self.epoch, self.news_number = "", 0
        self._is_ahead = False  # the history has said what the news had not
        self.delay_s = 0.0
        """From the newest news' being written to its being in force here, by the server's clock."""

    def live(self, model_id: str) -> Deployment | None:
        """What is served of a model, if anything."""
        if self._is_following or self._remembers:
            return self._live.get(model_id)
        return self._history.live_lately(model_id)

    @property
    def cold(self) -> dict[str, str]:
        """Of a replica: why a live version could not be loaded, by model and version."""
        return {f"{model_id} {each.version}": why for model_id, (each, why) in self._cold.items()}

    @property
    def unanswered(self) -> dict[str, str]:
        """Those of them in whose place no version before them answers."""
        return {
            f"{model_id} {each.version}": why
            for model_id, (each, why) in self._cold.items()
            if self._live.get(model_id) in (None, each)
        }

    @property
    def num_live(self) -> int:
        """Models with a version in force."""
        return len(self._live)

    @property
    def follows(self) -> str:
        """By what: `redis`, or the `history` file while Redis is away."""
        return "redis" if self._is_following else "history"

    def start(self) -> None:
        """Loads all that is live, then follows; a replica's thread does either."""
        if not self._remembers and not self._look(block_ms=1):
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
                if self._remembers:
                    self._look_at_history()
                self._stopping.wait(PAUSE_S)
            if self._cold and time.monotonic() - self._tried_s > WARM_AGAIN_S:
                self._try_again()

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

    def _is_older(self, news: News) -> bool:
        """Whether it is less than what is in force: a Redis that came back without its last second, or that was away
        while the history went on. The control plane writes the rest again, with a higher number."""
        least = self.news_number + self._is_ahead
        return self._remembers and news.is_whole and news.epoch == self.epoch and news.number < least

    def _take(self, news: News) -> None:
        for name, value in news.fields.items():
            if name == KEYS and value is not None:
                self._trust(value)
            if name.startswith("intervals:") and value is not None:
                self._adopt(value)
        if self._is_older(news):
            return
        self._is_ahead = False
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
            live[model_id] = self._in_force(deployment)
        self._put(live)
        self.epoch, self.news_number = news.epoch, news.number
        self.is_known = True
        ahead_s = 0.0 if self._reader is None else self._reader.ahead_s
        self.delay_s = max(0.0, time.time() + ahead_s - int(news.place.partition("-")[0]) / 1000)

    def _put(self, live: dict[str, Deployment]) -> None:
        self._live = live
        self._cold = {model_id: each for model_id, each in self._cold.items() if model_id in live}

    def _in_force(self, deployment: Deployment) -> Deployment:
        """The deployment that answers from now on: this one, or the one before it where it cannot be loaded here."""
        model_id = deployment.model_id
        before, cold = self._live.get(model_id), self._cold.get(model_id)
        is_cold = cold is not None and cold[0].version == deployment.version
        if before is not None and before.version == deployment.version and not is_cold:
            why = ""
        else:
            why = self._warmed(deployment, known="" if cold is None else cold[1])
        if why and self._remembers:
            self._cold = {**self._cold, model_id: (deployment, why)}
            return before or deployment
        self._cold = {each: value for each, value in self._cold.items() if each != model_id}
        return deployment

    def _try_again(self) -> None:
        self._tried_s = time.monotonic()
        for deployment, _ in list(self._cold.values()):
            self._live = {**self._live, deployment.model_id: self._in_force(deployment)}
        self.on_news()

    def _look_at_history(self) -> None:
        """What was deployed while Redis is away; what cannot be read changes nothing."""
        if time.monotonic() - self._looked_s < LOOK_AT_HISTORY_S:
            return
        self._looked_s = time.monotonic()
        live = dict(self._live)
        try:
            names = self._history.names()
            for model_id in names:
                if self.is_known:
                    self._history.refresh(model_id)  # a bucket's mirror alone would say what it knew
                found = self._history.live(model_id)
                if found is not None:
                    live[model_id] = self._in_force(found)
                elif self._history.of(model_id):
                    live.pop(model_id, None)
        except (PlatformError, OSError) as error:
            log.warning("the history of deployments cannot be read: %s", error)
            return
        self._is_ahead = self._is_ahead or (self.is_known and live != self._live)
        self._put(live)
        self.is_known = self.is_known or bool(names)

    def _warmed(self, deployment: Deployment, *, known: str = "") -> str:
        """Loads it; why it cannot be, which is said once."""
        try:
            self._warm(deployment)
        except (PlatformError, OSError) as error:  # whoever asks it is told the same
            why = error.message if isinstance(error, PlatformError) else f"{type(error).__name__}: {error}"
            if why != known:
                log.error("%s %s is live and cannot be loaded: %s", deployment.model_id, deployment.version, why)
            return why
        return ""
