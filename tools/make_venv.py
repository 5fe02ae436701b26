"""Makes the virtual environment, or says in one sentence why it cannot. Runs on old Pythons too, and needs nothing.

    python3 tools/make_venv.py .venv

A usable environment that stands already is kept; one that a broken run left behind is made again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)


def refusal(version: tuple[int, int], *, has_ensurepip: bool) -> str | None:
    """Why this interpreter cannot carry the environment, with the next step; None where it can."""
    if not OLDEST <= version <= NEWEST:
        return (
            f"ML Workbench needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} and this is "
            f"{version[0]}.{version[1]}; install one of those, or name it: make PYTHON=/path/to/python3.12"
        )
    if not has_ensurepip:
        return (
            "this Python comes without venv and ensurepip; on Debian and Ubuntu install them with: "
            f"apt-get install python{version[0]}.{version[1]}-venv"
        )
    return None


def has_ensurepip() -> bool:
    """Whether this interpreter can put pip into a new environment."""
    try:
        import ensurepip
        import venv
    except ImportError:
        return False
    return bool(ensurepip and venv)


def is_usable(folder: Path) -> bool:
    """Whether an environment with a suitable Python and pip stands there."""
    python = folder / "bin" / "python"
    if not python.exists():
        return False
    question = f"import sys, pip; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"
    return subprocess.run([str(python), "-c", question], capture_output=True, check=False).returncode == 0


def main() -> None:
    """Makes the folder named on the command line."""
    folder = Path(sys.argv[1])
    if is_usable(folder):
        return
    reason = refusal((sys.version_info[0], sys.version_info[1]), has_ensurepip=has_ensurepip())
    if reason:
        sys.exit(reason)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)


if __name__ == "__main__":
    main()
