"""Environment of a worker elsewhere: where its job is, and the one-time token with which it begins.

    ML_WORKBENCH_JOB_URL      https://host:port/api/v1/jobs/{job_id}
    ML_WORKBENCH_JOB_TOKEN    one-time; in the worker's own children the token that it was exchanged for

A training backend asks for it once for each worker that it starts, and starts
`python -m ml_workbench_service.runtime.job_worker` with it.
"""

from ml_workbench_service.elsewhere.connection import check_address
from ml_workbench_service.jobs.job import JobFolder

URL_VARIABLE = "ML_WORKBENCH_JOB_URL"
TOKEN_VARIABLE = "ML_WORKBENCH_JOB_TOKEN"


def attempt_environment(folder: JobFolder, *, control_url: str) -> dict[str, str]:
    """Both variables, for the job's next attempt; whatever an earlier one was granted ends.

    Args:
        control_url: the service's address as workers reach it, such as `https://control:8005`.

    Raises:
        DataValidationError: an address without HTTPS that is not this machine's own.
        UnavailableError: the disk is full.
    """
    url = f"{control_url.rstrip('/')}/api/v1/jobs/{folder.id}"
    check_address(url)
    return {URL_VARIABLE: url, TOKEN_VARIABLE: folder.grant.issue(folder.next_attempt)}
