"""Faults of the connections between producers, agents and the server, by the fault proxy."""

from ml_workbench_service.resilience.fault import Fault
from ml_workbench_service.resilience.proxy import FaultProxy
from ml_workbench_service.resilience.rig import Need, Rig


def _proxy(rig: Rig) -> FaultProxy:
    assert rig.proxy is not None, "the fault says that it needs the proxy"
    return rig.proxy


class ConnectionReset(Fault):
    """Every connection is reset (RST) at random moments, in the middle of whatever passes."""

    name = "connection_reset"
    needs = frozenset({Need.PROXY})

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.02, longest_s=0.4):
            rig.note(self.name, f"{_proxy(rig).reset()} connections reset")


class ConnectionCut(Fault):
    """A request or an answer passes by half, then its connection is reset: the command was executed, or it was not."""

    name = "connection_cut"
    needs = frozenset({Need.PROXY})

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.02, longest_s=0.4):
            direction = "answer" if self.rng.random() < 0.6 else "request"
            _proxy(rig).cut("answer" if direction == "answer" else "request")
            rig.note(self.name, f"the next {direction} is cut")


class ConnectionSlow(Fault):
    """Everything between processes and server is delayed by up to 40 ms and throttled."""

    name = "connection_slow"
    needs = frozenset({Need.PROXY})

    def __call__(self, rig: Rig) -> None:
        proxy = _proxy(rig)
        while self.pauses(rig, shortest_s=0.1, longest_s=0.6):
            proxy.delay_s = self.rng.uniform(0.001, 0.04)
            proxy.bytes_per_s = self.rng.uniform(2e5, 2e6)
            rig.note(self.name, f"{proxy.delay_s * 1000:.0f} ms, {proxy.bytes_per_s / 1e6:.1f} MB/s")
            rig.sleep(self.rng.uniform(0.2, 1.0))
            proxy.delay_s, proxy.bytes_per_s = 0.0, None


class ConnectionRefused(Fault):
    """The server's port is closed for up to a second: connections are reset and new ones refused."""

    name = "connection_refused"
    needs = frozenset({Need.PROXY})

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.2, longest_s=1.0):
            _proxy(rig).refuse()
            rig.note(self.name, "refused")
            rig.sleep(self.rng.uniform(0.05, 1.0))
            _proxy(rig).accept()
            rig.note(self.name, "accepted again")


class BlackHole(Fault):
    """Nothing passes and nobody is told, once for longer than the clients' patience of 5 s; then all of it arrives."""

    name = "black_hole"
    needs = frozenset({Need.PROXY})

    def __call__(self, rig: Rig) -> None:
        rig.sleep(self.rng.uniform(0.2, 0.8) * rig.request.duration_s)
        seconds = self.rng.uniform(5.1, 6.5)
        _proxy(rig).swallow()
        rig.note(self.name, f"nothing passes for {seconds:.1f} s")
        rig.sleep(seconds)
        _proxy(rig).release()
        rig.note(self.name, "everything passes")
