"""Faults of the producers: killed, and too many records at once."""

from ml_workbench_service.contracts.resilience import ResilienceRequest
from ml_workbench_service.resilience.fault import Fault
from ml_workbench_service.resilience.rig import Rig
from ml_workbench_service.resilience.schedule import Burst


class PublisherKilled(Fault):
    """The producing process is killed with -9 and followed by another; what was acknowledged must be there."""

    name = "publisher_killed"

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.3, longest_s=1.5):
            producer = rig.producers[-1]
            if not producer.kill(wanted=False):
                return  # it has offered everything
            history = producer.history()
            rig.note(self.name, f"{producer.name} killed after record {history.offered_up_to}")
            rig.start_producer(first=history.offered_up_to + 1)


class BurstBeyondCapacity(Fault):
    """Twice as many records as the queue holds, at once, on top of the flood."""

    name = "burst_beyond_capacity"

    def bursts(self, request: ResilienceRequest) -> list[Burst]:
        """Two, at random moments."""
        moments = [self.rng.uniform(0.1, 0.9) * request.duration_s for _ in range(2)]
        return [Burst(moment, 2 * min(request.capacity, 2000)) for moment in sorted(moments)]

    def __call__(self, rig: Rig) -> None:
        for burst in rig.bursts:  # they come by the producers' schedule
            rig.note(self.name, f"{burst.num_records} records at {burst.at_s:.2f} s")
