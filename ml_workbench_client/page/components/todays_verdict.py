"""The verdict that a version has today, as the service's gate reads it, and why; else the published one."""

from typing import NamedTuple

from ml_workbench_service.contracts.models import ModelCard


class VerdictToday(NamedTuple):
    """A verdict with its reason.

    Attributes:
        published: what the card said when it was published, where that is another verdict.
    """

    verdict: str
    reason: str
    published: str | None = None


def verdict_of(card: ModelCard) -> VerdictToday:
    """Later evaluations of the same series raise the bar, so that a verdict may fall after its publication."""
    published, today = card.evaluation, card.todays_verdict
    if today is None or today.verdict is None:
        return VerdictToday(published.verdict, published.reason)
    other = published.verdict if published.verdict != today.verdict else None
    return VerdictToday(today.verdict, today.reason, other)
