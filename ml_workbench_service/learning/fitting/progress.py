"""`PartReport`: what a part of a longer work may say: its messages name the part, its steps are the whole's affair."""

from ml_workbench_service.contracts.jobs import Report


class PartReport:
    """A `Report` for a part, such as a fold: messages end with its name, steps are kept to itself.

    Args:
        report: the whole work's.
        name: of the part, as people read it.
    """

    def __init__(self, report: Report, name: str) -> None:
        self._report = report
        self._name = name

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Only looks for a cancellation: the part's steps are none of those that are followed."""
        self._report.check()

    def say(self, message: str) -> None:
        """The message and the part's name."""
        self._report.say(f"{message} ({self._name})")

    def warn(self, message: str) -> None:
        """As it is."""
        self._report.warn(message)

    def check(self) -> None:
        """As it is."""
        self._report.check()
