"""What replicas hand over faster than the disk is waited for is saved before the stream is full."""

from pathlib import Path

import pytest
import redis

from ml_workbench_service.contracts.handover import HANDOVER_STREAM
from ml_workbench_service.integrations.replicas.handover import HandoverStream
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.workflows import apply_handover
from ml_workbench_service.workflows.apply_handover import MOST_UNSAVED, HandoverApplier
from tests.ledger_entries import awaited, opened
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401


def test_many_parcels_are_saved_before_their_time(
    redis_server: RedisForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_handover, "SAVE_EVERY_S", 1e9)
    stream = HandoverStream(redis_server.url)
    with opened(tmp_path / "predictions.db") as ledger:
        applier = HandoverApplier(stream, ledger, LiveIntervals(tmp_path / "adaptive"))
        applier.recover()
        pipeline = redis.Redis.from_url(redis_server.url).pipeline()
        for number in range(2 * MOST_UNSAVED):
            pipeline.xadd(HANDOVER_STREAM, {"sender": "replica", "first": number, "num": 1, "items": "[]"})
        pipeline.execute()
        applier.start()
        try:
            awaited(lambda: stream.length() < MOST_UNSAVED)
        finally:
            applier.stop()
