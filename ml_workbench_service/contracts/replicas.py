"""Predict workers and replicas: what the control process has them serve, and what they report.

Redis hash `ml_workbench:serving` (the newest state, whole) and stream `ml_workbench:serving:news` (which of its fields
changed):

    epoch                          a name for one life of the control process's publishing; missing: the state is lost
    number                         of the news that made it what it is, counted within the epoch
    live:<model_id>                the live Deployment as JSON; no field: nothing of the model is live
    intervals:<model_id>:<version> the live intervals as their file has them
    keys                           the public keys of signing_keys.json: a replica verifies bundles with them

Of replicas, which report nowhere else:

    ml_workbench:serving:beat      "<count> <place>": the control process lives, and has applied and published all that
                                   was handed over up to that place; the server ends it `BEAT_KEPT_S` after the last one
    ml_workbench:replicas          set of names
    ml_workbench:replica:<name>    ReplicaReport; ended by the server `REPORT_KEPT_S` after the last one
"""

from typing import Any, NamedTuple

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.queue import KEY_PREFIX

SERVING_STATE = KEY_PREFIX + "serving"
SERVING_NEWS = SERVING_STATE + ":news"
EPOCH, NUMBER, KEYS = "epoch", "number", "keys"
BEAT = SERVING_STATE + ":beat"
BEAT_KEPT_S = 5
REPLICAS, REPLICA = KEY_PREFIX + "replicas", KEY_PREFIX + "replica:"
REPORT_KEPT_S = 5


def live_field(model_id: str) -> str:
    """Of a model's live deployment."""
    return f"live:{model_id}"


def intervals_field(model_id: str, version: str) -> str:
    """Of a version's live intervals."""
    return f"intervals:{model_id}:{version}"


class News(NamedTuple):
    """Fields of the serving state that changed, with what they are now (None: removed), up to a place in the stream.

    Attributes:
        number: of the newest news in it, within the epoch.
        is_whole: these are all fields there are.
    """

    place: str
    number: int
    fields: dict[str, bytes | None]
    is_whole: bool = False
    epoch: str = ""


class WorkerReport(Contract):
    """What a predict worker says of itself, once a second and when it is asked.

    Attributes:
        follows: by what it knows what is live.
        num_waiting: questions before its networks.
        num_unhanded: items that Redis has not taken from it yet.
        num_dropped: items that there was no room for.
        news_number: of the newest news of what is to be served that are in force here.
        delay_s: from the control process's newest news to their being heard here, at most, of late.
        metrics: families as `api/predict_workers/metrics.py` packs them.
    """

    number: int
    pid: int
    follows: str
    num_connections: int
    num_waiting: int
    num_loaded: int
    num_unhanded: int
    num_dropped: int
    outbox: int
    outbox_dropped_by_symbol: dict[str, int]
    news_number: int = 0
    delay_s: Finite = 0.0
    precision_reasons: dict[str, str] = Field(default_factory=dict)
    precision_warnings: dict[str, str] = Field(default_factory=dict)
    metrics: list[Any] = Field(default_factory=list)


class ReplicaReport(Contract):
    """What a predict replica says of itself, once a second and whenever news are in force.

    Attributes:
        epoch, news_number: of the newest news of what is to be served that are in force here.
        is_ready: whether all that is live is in memory.
        cold: live versions that could not be loaded, each with the reason.
        num_unhanded, num_dropped: as of a predict worker.
        delay_s: from the newest news' being in Redis to their being in force here, by the server's clock.
        behind_s: age of the oldest answer of any replica that the intervals here do not know of.
    """

    name: str
    epoch: str
    news_number: int
    is_ready: bool
    cold: dict[str, str] = Field(default_factory=dict)
    num_loaded: int
    outbox: int
    num_unhanded: int
    num_dropped: int
    delay_s: Finite = 0.0
    behind_s: Finite = 0.0
