"""Closed-loop load: so many connections, each of which asks again as soon as its answer is read; or, with `per_s`, an
open loop: questions fall due at that rate, and an answer's time counts from when its question was due.

One JSON line in for each turn, one out; a process of its own, to be pinned.

Sockets and `epoll` alone, some 10 microseconds a request: what is measured is the server. An answer that is no 200 ends
the turn with an error.
"""

import select
import socket
import time
from collections import deque
from typing import Any

from benchmarks.contestants.turns import play

LENGTH = b"content-length:"


class Connection:
    """One connection and the answer that it waits for."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._answer = b""
        self._wanted = -1  # bytes of the whole answer, once its head is there
        self.begun = 0.0

    def ask(self) -> None:
        """Sends the request."""
        self._answer, self._wanted = b"", -1
        self.begun = time.perf_counter()
        self.socket.sendall(self._request)

    def read(self) -> bool:
        """Reads what has come; whether the answer is whole."""
        received = self.socket.recv(262_144)
        if not received:
            raise RuntimeError("the server closed the connection")
        self._answer += received
        if self._wanted < 0:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self._answer[:end].lower()
            if b" 200 " not in head[:16]:
                raise RuntimeError(f"the server answered {self._answer[:400]!r}")
            place = head.index(LENGTH) + len(LENGTH)
            self._wanted = end + 4 + int(head[place:].split(b"\r\n", 1)[0])
        return len(self._answer) >= self._wanted


def turn(
    port: int, head: str, body: str, num_connections: int, seconds: float, *, ports: list[int] | None = None,
    per_s: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Asks for so long; requests a second, and the latencies' quantiles in milliseconds.

    Args:
        ports: of several servers, among which the connections are dealt out in turn.
        per_s: questions a second; 0: as fast as they are answered.
    """
    content = body.encode()
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    places = ports or [port]
    connections = [Connection(places[number % len(places)], request) for number in range(num_connections)]
    by_number = {each.socket.fileno(): each for each in connections}
    took: list[float] = []
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    idle = deque(connections)
    begun = due = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        while idle and due <= now:
            each = idle.popleft()
            each.ask()
            if per_s:
                each.begun, due = due, due + 1 / per_s
        for number, _ in poll.poll(max(due - now, 0.0) if idle else 5.0):
            each = by_number[number]
            if each.read():
                took.append(time.perf_counter() - each.begun)
                idle.append(each)
    for each in connections:
        each.socket.close()
    poll.close()
    took.sort()
    quantile = {name: took[int(share * (len(took) - 1))] * 1000 for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {"num": len(took), "per_s": len(took) / (now - begun), **quantile}


if __name__ == "__main__":
    play(turn)
