"""Backup and restore from the command line: STATE_DIR and MODEL_REGISTRY_PATH of the environment, in one archive.

python -m tools.backup create backups/2026-11-29.tar.gz      of a service that runs, or is stopped
python -m tools.backup restore backups/2026-11-29.tar.gz     into empty places, before the service starts
"""

import argparse
import sys
from pathlib import Path

from common_lib.exceptions import PlatformError
from ml_workbench_service.access.audit_log import Who
from ml_workbench_service.cli.access import person
from ml_workbench_service.integrations.backup_archive import BackupManifest
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.back_up_state import back_up, registry_in_archives
from ml_workbench_service.workflows.restore_state import restore


def described(manifest: BackupManifest) -> str:
    """What the archive holds, for people."""
    num_bytes = sum(each.size for each in manifest.files)
    text = f"{len(manifest.files)} files, {num_bytes / 1e6:.1f} MB, as of {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC; "
    text += manifest.about_the_queue
    for version in manifest.damaged:
        text += f"\nwarning: version {version} was not what was published; train it again, or restore it"
    return text


def main() -> int:
    """Parses the command line, does it, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.backup", description="Backup and restore of the service.")
    parser.add_argument("verb", choices=("create", "restore"))
    parser.add_argument("archive", type=Path, help="a tar file; compressed where its name ends in gz")
    arguments = parser.parse_args()
    settings = Settings()
    state_dir = settings.STATE_DIR
    try:
        with registry_in_archives(settings) as registry:
            if arguments.verb == "create":
                is_external = settings.REDIS_URL is not None
                manifest = back_up(state_dir, registry, arguments.archive, redis_is_external=is_external)
                print(f"{arguments.archive} is written and verified: {described(manifest)}")
            else:
                who = Who("command_line", client=person())
                manifest = restore(arguments.archive, state_dir, registry, who=who)
                print(f"{state_dir} and {settings.MODEL_REGISTRY_PATH} are restored: {described(manifest)}")
    except PlatformError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
