"""The document against a service: `python -m chaos.document [--minutes M] [--seed N] [--only with|without]`.

Twice, without keys and with them: examples, the borders of every schema, random cases, and chains of operations that
hand ids on (schemathesis' four phases), each answer held against every check. With keys it also asks without one and
with a wrong one. What is left out stands in `schemathesis.toml`. Ends with 1 where any check failed.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.document.service import Asked, asked
from tools.documents import say

USUAL_MINUTES = 6.0
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WITHOUT_KEYS = [
    "--exclude-checks",
    "ignored_auth,missing_required_header",
    "--generation-with-security-parameters",
    "false",
]
"""The document says that a key is needed, and a service that has none answers its own machine without."""
PROGRAM = Path(sys.executable).with_name("schemathesis")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs schemathesis against each service; the exit code."""
    told = _parser().parse_args(arguments)
    seed = secrets.randbelow(2**31) if told.seed is None else told.seed
    wanted = [has_keys for has_keys, name in ((False, "without"), (True, "with")) if told.only in (None, name)]
    failed = False
    for has_keys in wanted:
        say(f"seed {seed}, {'with' if has_keys else 'without'} keys")
        begun_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, asked(Path(folder, "service"), has_keys=has_keys) as service:
            code = run(service, seed=seed, minutes=told.minutes / len(wanted))
        say(f"{(time.monotonic() - begun_s) / 60:.1f} minutes, {'findings' if code else 'no finding'}")
        failed = failed or code != 0
    return 1 if failed else 0


def run(service: Asked, *, seed: int, minutes: float, more: Sequence[str] = ()) -> int:
    """One run of schemathesis; its exit code, 0 where every check held."""
    key = WITHOUT_KEYS if service.key is None else ["--header", f"X-API-Key:{service.key}"]
    command = [
        str(PROGRAM), "--config-file", str(HERE / "schemathesis.toml"), "run", f"{service.address}/openapi.json",
        "--seed", str(seed), "--max-time", str(max(int(60 * minutes), 1)), "--checks", "all", "--continue-on-failure",
        "--generation-database", "none", "--request-timeout", "60", "--no-color", "--warnings", "off", *key, *more,
    ]  # fmt: skip
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "chaos.document.hooks", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as place:  # it leaves reports where it is started
        return subprocess.run(command, env=environment, cwd=place, check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.document", description="The document against a service.")
    parser.add_argument("--minutes", type=float, default=USUAL_MINUTES)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", choices=("with", "without"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
