"""Append-only records of the registry and of STATE_DIR: a bad line stops itself alone; every whole one counts."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import strategies as st

from chaos.kill_sweep.steps import MODEL, card
from chaos.parsers.promise import mutations, promise
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.deployment_history import HISTORY_FILE, DeploymentHistory
from ml_workbench_service.learning.bundle.signatures import RECORD_FILE, PublishedVersion, Signatures

MOMENT = datetime(2025, 3, 3, tzinfo=UTC)


def _deployment(number: int) -> Deployment:
    statuses = ("pending", "live", "failed", "superseded", "rolled_back")
    return Deployment.model_validate({
        "id": f"deployment-{number // 2}", "model_id": MODEL, "version": f"1.{number}.0", "deployment_target": "local",
        "status": statuses[number % len(statuses)], "previous_version": None,
        "created_at": MOMENT + timedelta(seconds=number),
    })  # fmt: skip


HISTORY = "".join(f"{_deployment(number).model_dump_json()}\n" for number in range(8)).encode()


def _record() -> tuple[list[ModelCard], bytes]:
    cards = [card(f"1.{number}.0").model_copy(update={"digest": f"sha256:{number:064x}"}) for number in range(4)]
    lines = [
        PublishedVersion(
            model_id=each.id, version=each.version, digest=each.digest, at=MOMENT, by="publishing",
            evaluation=each.evaluation, certificate=each.certificate,
        ).model_dump_json()
        for each in cards
    ]  # fmt: skip
    return cards, "".join(f"{line}\n" for line in lines).encode()


CARDS, RECORD = _record()


@promise("deployment histories", mutations([HISTORY]) | st.binary(max_size=60))
def histories(content: bytes) -> None:
    """Each deployment of which a line is whole is there, at most one is live, and a line more is read."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name, MODEL)
        home.mkdir()
        (home / HISTORY_FILE).write_bytes(content)
        history = DeploymentHistory(Path(name))
        found = {each.id for each in history.everything()}
        whole = [line for line in content.splitlines() if line in HISTORY.splitlines()]
        assert {Deployment.model_validate_json(line).id for line in whole} <= found
        assert sum(each.status == "live" for each in history.of(MODEL)) <= 1
        history.append(_deployment(21))
        assert history.live_version(MODEL) == "1.21.0"


@promise("records of what was published", mutations([RECORD]) | st.binary(max_size=60))
def records(content: bytes) -> None:
    """Of a version whose line is whole, what was written; of any other that, or nothing."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, RECORD_FILE).write_bytes(content)
        signatures = Signatures(Path(name))
        for each, line in zip(CARDS, RECORD.splitlines(), strict=True):
            found = signatures.recorded(each)
            if found is None:
                assert line not in content.splitlines()
            else:
                assert (found.model_id, found.version, found.digest) == (each.id, each.version, each.digest)
