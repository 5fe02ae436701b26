"""Prints the conformance table at the end of a run: every check a row, every family a column."""

import re

import pytest

_NAME = re.compile(r"families/test_every_family\.py::Test_(\w+)::test_(\w+)")
_MARKS = {"passed": "✓", "failed": "✗", "skipped": "-"}
_cells: dict[tuple[str, str], str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps the outcome of each cell; a check of several cases is as good as its worst."""
    match = _NAME.search(report.nodeid)
    if match is None or (report.when != "call" and report.passed):
        return
    family, check = match[1], match[2].replace("_", " ")
    before = _cells.get((check, family))
    if before in (None, "✓"):
        _cells[check, family] = _MARKS[report.outcome]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, where the conformance suite ran."""
    if not _cells:
        return
    families = [name for name in _families() if any(family == name for _, family in _cells)]
    checks = list(dict.fromkeys(check for check, _ in _cells))
    width = max(map(len, checks))
    terminalreporter.section("families x checks")
    for number, family in enumerate(families):
        bars = "│ " * number
        terminalreporter.write_line(f"{'':{width}}  {bars}{family}")
    for check in checks:
        cells = " ".join(_cells.get((check, family), "·") for family in families)
        terminalreporter.write_line(f"{check:{width}}  {cells}")
    terminalreporter.write_line("✓ passed   ✗ failed   - skipped   · does not apply")


def _families() -> list[str]:
    from ml_workbench_service import families as families
    from ml_workbench_service.learning.interfaces.family import Family

    return list(Family.known)
