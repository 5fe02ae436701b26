"""Kept bucket: whether the registry's bucket answers, for readiness; what is cached is served while it does not."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.market import OutsideThing

if TYPE_CHECKING:  # the store's client is loaded where a registry lies in a bucket
    from ml_workbench_service.integrations.object_registry.mirror import Mirror

LATE_S = 5.0
"""A look at the bucket takes its time where there are many models; past this, or past ten looks, it says nothing."""


class KeptBucket:
    """What `integrations.kept_folder` is for a folder; the mirror's own thread looks."""

    def __init__(self, mirror: "Mirror", *, now: Callable[[], datetime] = utc_now) -> None:
        self._mirror = mirror
        self._now = now

    def thing(self) -> OutsideThing:
        """For readiness; never waits for the store."""
        synced_s = self._mirror.synced_s
        last_ok_at = None if synced_s is None else self._now() - timedelta(seconds=synced_s)
        if synced_s is not None and synced_s < max(LATE_S, 10 * self._mirror.pause_s):
            detail = f"{self._mirror.bucket.address} answers, as of {synced_s:.1f} s ago"
            return OutsideThing(mode="remote", state="ok", detail=detail, last_ok_at=last_ok_at)
        since = "never" if synced_s is None else f"not for {synced_s:.0f} s"
        why = self._mirror.fault or (
            f"{self._mirror.bucket.address} was {since} looked at; what is cached here is served, and nothing is "
            "published or deployed until it answers"
        )
        return OutsideThing(mode="remote", state="degraded", detail=why, last_ok_at=last_ok_at)
