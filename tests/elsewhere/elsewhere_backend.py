"""Workers over HTTP: local processes that know nothing but their job's address and a one-time token."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_workbench_service.contracts.jobs import JobSpec
from ml_workbench_service.elsewhere.environment import attempt_environment
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.runtime.training_backends import LocalBackend

NOT_THEIRS = ("REDIS_URL", "FEATURE_STORE_URL", "EXPERIMENT_TRACKING_URI", "ML_WORKBENCH_FOLDER_WORDS")


class ElsewhereBackend(LocalBackend):
    """A local backend whose workers have no path to the service's folders: an empty folder of their own, and HTTP."""

    def __init__(self, store: JobStore, *, control_url: str, command: Sequence[str], **more: Any) -> None:
        super().__init__(store, command=command, **more)
        self._control_url = control_url

    def _start(self, spec: JobSpec, path: Path) -> int:
        folder = self._store.folder(spec.id)
        given = self._environment_of(spec.kind)
        home = tempfile.mkdtemp(prefix="elsewhere-", dir=given["TMPDIR"])
        theirs = {name: value for name, value in given.items() if name not in NOT_THEIRS}
        theirs |= {"STATE_DIR": f"{home}/state", "MODEL_REGISTRY_PATH": f"{home}/registry", "LOG_DIR": f"{home}/logs"}
        with folder.worker_log.open("ab") as log:
            child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=home,
                env=theirs | attempt_environment(folder, control_url=self._control_url), start_new_session=True,
            )  # fmt: skip
        child.returncode = 0  # reaped by pid
        return child.pid
