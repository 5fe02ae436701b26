"""`PartReport`: progress of a part of a longer work: its messages name the part, its steps are the whole's affair."""

from ml_workbench_service.contracts.jobs import Report, SilentReport


class PartReport(SilentReport):
    """A `Report` for a part, such as a fold: messages end with its name, steps are kept to itself.

    Args:
        report: the whole work's.
        name: of the part, as people read it.
    """

    def __init__(self, report: Report, name: str) -> None:
        super().__init__(report.check, report.warn)
        self._report = report
        self._name = name

    def say(self, message: str) -> None:
        """The message and the part's name."""
        self._report.say(f"{message} ({self._name})")
