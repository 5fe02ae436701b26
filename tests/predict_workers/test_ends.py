"""The end of a service behind predict workers: what was sent before the signal is answered."""

import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.http_server.test_half_sent_requests import HEALTH, read_all
from tests.predict_workers.conftest import start, workers_of
from tests.service_process import ServiceProcess

NUM_REQUESTS = 20


@pytest.mark.more
def test_what_was_sent_before_the_end_is_answered(service: ServiceProcess, tmp_path: Path) -> None:
    running = start(service, tmp_path)
    try:
        workers = list(workers_of(running).values())
        for each in workers:
            each.send_signal(signal.SIGSTOP)
        sent = [socket.create_connection(("127.0.0.1", running.port), timeout=60) for _ in range(NUM_REQUESTS)]
        for each in sent:
            each.sendall(HEALTH)
        assert running.process is not None
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # so that the signal waits for them, as it does for a busy one
        for each in workers:
            each.send_signal(signal.SIGCONT)
        answers = read_all(sent)
        assert [each[:12] for each in answers] == [b"HTTP/1.1 200"] * NUM_REQUESTS
    finally:
        for each in workers:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                each.send_signal(signal.SIGCONT)
        running.close()
