"""Reading check: what is doubtful about how files of bars were read, which no recomputation from those bars can see."""

from collections.abc import Sequence

from ml_workbench_service.contracts.evaluation import CertificateCheck
from ml_workbench_service.contracts.market import FeatureTable

_MOST_TOLD = 3


def reading(tables: Sequence[FeatureTable]) -> CertificateCheck:
    """`unprovable` where a reading report has a warning: a wrong clock or another pair's prices is no leak, and lies
    below all that the certificate makes again."""
    reports = [report for table in tables for report in table.reports]
    doubts = list(dict.fromkeys(f"{each.file}: {warning}" for each in reports for warning in each.warnings))
    if doubts:
        more = f"; and {len(doubts) - _MOST_TOLD} more" if len(doubts) > _MOST_TOLD else ""
        return CertificateCheck(name="reading", status="unprovable", detail="; ".join(doubts[:_MOST_TOLD]) + more)
    files = f"nothing is doubtful about how {len(reports)} files were read" if reports else "no file of bars was read"
    return CertificateCheck(name="reading", status="passed", detail=files)
