"""A virtual environment for each peer below `.bench/`, made when a benchmark first needs it."""

import os
import subprocess
import sys
from pathlib import Path

from tools.interleaved_rounds import WORKPLACE


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of an environment that holds these packages.

    uv takes torch from the folder named by UV_FIND_LINKS or PIP_FIND_LINKS, where there is one; otherwise the package
    index serves its usual build, which on Linux is gigabytes of CUDA.
    """
    folder = WORKPLACE / "peers" / name
    python, stamp = folder / "bin" / "python", folder / "requirements"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"setting up {name} in {folder.relative_to(WORKPLACE.parent)}")
    environment = dict(os.environ)
    links = environment.get("UV_FIND_LINKS") or ",".join(environment.get("PIP_FIND_LINKS", "").split())
    if links:
        environment["UV_FIND_LINKS"] = links
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *requirements],
    ):
        subprocess.run(command, env=environment, check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python
