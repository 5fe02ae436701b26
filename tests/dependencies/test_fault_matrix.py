"""The short form of `python -m chaos.dependencies`: some faults of some things, and that a violation would be found."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.dependencies.__main__ import running
from chaos.dependencies.matrix import FAULTS, Row, promised, sweep, table
from chaos.dependencies.proxy import Fault, FaultyProxy
from chaos.dependencies.servers import DEPENDENCIES, FEATURE_STORE, MLFLOW, REDIS, STRATEGY_ENGINE
from chaos.dependencies.verbs import VERBS, Outcome

VERBS_OF_A_MOMENT = ("predict", "predict, features sent", "deploy", "replay")
CASES = {FEATURE_STORE: Fault.GARBAGE, REDIS: Fault.HALF_ANSWER, STRATEGY_ENGINE: Fault.DRIP}
ANSWER = b"an answer of the server"


@pytest.mark.more
def test_what_fails_outside_is_answered_as_promised_and_gets_well_without_a_restart(tmp_path: Path) -> None:
    with running(tmp_path, tuple(CASES)) as (client, asker, proxies):
        rows = [
            row
            for thing, fault in CASES.items()
            for row in sweep(client, asker, {thing: proxies[thing]}, [fault], VERBS_OF_A_MOMENT)
        ]
    assert [each for row in rows for each in row.violations()] == [], table(rows)


@pytest.fixture
def echoing() -> Iterator[int]:
    """A server that answers whatever comes, on one connection after the other."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
                with connection:
                    while connection.recv(100):
                        connection.sendall(ANSWER)
            except OSError:
                if server.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def asked(proxy: FaultyProxy, *, patience_s: float = 5.0) -> bytes | str:
    """What one question gets, up to the end of the connection or of the patience; the name of the error."""
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=patience_s) as connection:
            connection.sendall(b"question")
            answer = b""
            while len(answer) < len(ANSWER) and (piece := connection.recv(100)):
                answer += piece
            return answer
    except OSError as error:
        return type(error).__name__


def test_each_fault_is_what_it_says(echoing: int) -> None:
    with FaultyProxy(echoing) as proxy:
        assert asked(proxy) == ANSWER
        wanted = {
            Fault.LATENCY: ANSWER, Fault.SLOW_CLOSE: ANSWER, Fault.HALF_ANSWER: ANSWER[: len(ANSWER) // 2],
            Fault.REFUSED: "ConnectionRefusedError", Fault.RESET: "ConnectionResetError",
        }  # fmt: skip
        for fault, answer in wanted.items():
            proxy.fault = fault
            assert asked(proxy) == answer, fault
        for fault in (Fault.BLACK_HOLE, Fault.DRIP):
            proxy.fault = fault
            assert asked(proxy, patience_s=0.1) == "TimeoutError", fault
        proxy.fault = Fault.GARBAGE
        garbage = asked(proxy)
        assert (len(garbage), garbage == ANSWER) == (len(ANSWER), False)
        proxy.fault = Fault.NONE
        assert asked(proxy) == ANSWER


def test_what_a_black_hole_has_swallowed_arrives_once_it_is_gone(echoing: int) -> None:
    with FaultyProxy(echoing) as proxy:
        proxy.fault = Fault.BLACK_HOLE
        threading.Timer(0.1, setattr, (proxy, "fault", Fault.NONE)).start()
        assert asked(proxy) == ANSWER


def kept(thing: str, fault: Fault) -> Row:
    outcomes = {name: Outcome(promised(thing, fault, name) or "200", 1.0) for name in VERBS}
    row = Row(thing, fault, outcomes, back_after_s=1.0)
    row.readiness = next(each for each in ("down", "degraded", "ok") if not _says_otherwise(row, each))
    return row


def _says_otherwise(row: Row, state: str) -> bool:
    row.readiness = state
    return any("readiness says" in each for each in row.violations())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("thing", DEPENDENCIES)
def test_every_violation_is_found(thing: str, fault: Fault) -> None:
    row = kept(thing, fault)
    assert row.violations() == []
    for name in VERBS:
        wrong = kept(thing, fault)
        wrong.outcomes[name] = Outcome("500 INTERNAL_ERROR", 1.0)
        assert len(wrong.violations()) == 1
        wrong.outcomes[name] = Outcome("never", 1000.0)
        assert len(wrong.violations()) == 2
    for change in ({"readiness": "?"}, {"readiness_s": 1e3}, {"worst_health_s": 60.0}, {"back_after_s": None}):
        wrong = kept(thing, fault)
        vars(wrong).update(change)
        assert len(wrong.violations()) == 1, change


def test_nothing_but_mlflows_own_runs_depends_on_mlflow() -> None:
    assert {promised(MLFLOW, fault, verb) for fault in FAULTS for verb in VERBS} == {None}
