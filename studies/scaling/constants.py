"""Constants of the scaling model: what one unit of work costs here, as `--measure` found it, and where it is kept.

Seconds of processor time unless a name says else: other work stretches the clock, and hardly these.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = Path(__file__).parent / "constants.json"


@dataclass(frozen=True)
class Constants:
    """What was measured.

    Attributes:
        run_s, question_s: of a serving process: a turn of its loop with a run of a network, which questions of one
            version that wait together share; and a question.
        answer_cv2: squared coefficient of variation of one answer's processor time.
        redis_loop_s: of redis-server: a turn of its loop, in which it reads what any number of clients have sent.
        publish_call_s, publish_record_s: of redis-server: a call of `publish.lua`, and a record in it.
        consume_record_s: of redis-server: a record that an agent's group reads and acknowledges, 64 at once.
        parcel_s, item_s: of redis-server: a parcel handed over, read and trimmed, and an item in it.
        redis_cv2: of a call's processor time.
        apply_parcel_s: of the control process: a parcel of the hand-over.
        apply_row_s: of the control process: a sampled answer, from JSON to the row that waits.
        apply_drop_s: of the control process: a version's repeated questions, counted together.
        write_row_s, write_row_clock_s: a row of the ledger in its transaction, by processor time and by the clock.
        row_bytes: of the ledger's file.
        agent_call_s, agent_record_s: of an agent process: a turn, and a record in it.
        event_s, durable_event_clock_s: of a job's log: an event appended; one that waits for the disk, by the clock.
        route_s: of the control process: a small request of FastAPI's, which a worker elsewhere makes for its events.
        list_s, first_list_s: of the control process: a page of 50 of 1,000 models, later and the first time.
        load_s: of a bundle, verified and opened.
        start_clock_s: by the clock, until a service of 1,000 models answers, 320 of them live, in one predict worker.
        version_mb: resident memory of one live version more in a serving process.
        process_mb: resident memory of a serving process before its first model.
        parcels_per_s: parcels that passed from one worker to the control process and left the stream again.
    """

    run_s: float
    question_s: float
    answer_cv2: float
    redis_loop_s: float
    publish_call_s: float
    publish_record_s: float
    consume_record_s: float
    parcel_s: float
    item_s: float
    redis_cv2: float
    apply_parcel_s: float
    apply_row_s: float
    apply_drop_s: float
    write_row_s: float
    write_row_clock_s: float
    row_bytes: float
    agent_call_s: float
    agent_record_s: float
    event_s: float
    durable_event_clock_s: float
    route_s: float
    list_s: float
    first_list_s: float
    load_s: float
    start_clock_s: float
    version_mb: float
    process_mb: float
    parcels_per_s: float


UNITS = {"_cv2": "", "_mb": "MB", "_bytes": "bytes", "_per_s": "/s"}
SECONDS = ((1.0, "s"), (1e-3, "ms"), (0.0, "µs"))


def load(file: Path = FILE) -> Constants:
    """What the last measurement kept.

    Raises:
        SystemExit: there is none, or it lacks a constant; says how to measure.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))["constants"]
        return Constants(**{each.name: float(kept[each.name]) for each in fields(Constants)})
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(
            f"{file.name} has no constants ({error!r}); run python -m studies.scaling --measure"
        ) from error


def save(constants: Constants, measured: dict[str, object], file: Path = FILE) -> None:
    """Keeps them beside what else was seen while measuring."""
    file.write_text(json.dumps({"constants": asdict(constants), **measured}, indent=1) + "\n", encoding="utf-8")


def rows(constants: Constants) -> list[list[str]]:
    """Name, figure, unit."""
    found = []
    for name, value in asdict(constants).items():
        unit = next((each for suffix, each in UNITS.items() if name.endswith(suffix)), None)
        if unit is None:
            least, unit = next(each for each in SECONDS if value >= each[0])
            value /= least or 1e-6
        found.append([f"`{name}`", f"{value:,.3g}" if value < 100 else f"{value:,.0f}", unit])
    return found
