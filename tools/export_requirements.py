"""Writes `requirements.txt`, `requirements-dev.txt` and those of the images from `poetry.lock`; `make lock` runs it.

    python -m tools.export_requirements path/to/poetry

Hashes are left out, since the wheel of torch may come from a folder of CPU builds; CUDA's own packages are left out,
since the torch wheel that gets installed brings the ones that it needs.
"""

import subprocess
import sys

from tools.check_lock import FILES, ROOT, Installation, is_cuda


def export(poetry: str, installation: Installation) -> str:
    """The requirements of an installation, as `poetry-plugin-export` writes them, without CUDA's own."""
    further = [f"--with={group}" for group in sorted(installation.groups - {"main"})]
    further += [f"--extras={extra}" for extra in installation.extras]
    command = [poetry, "export", "--format=requirements.txt", "--without-hashes", "--without-urls", *further]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not is_cuda(line))


def main() -> None:
    """Writes all files."""
    for file, installation in FILES.items():
        (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / file).write_text(export(sys.argv[1], installation), encoding="utf-8")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
