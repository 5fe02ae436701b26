"""Import law of the API process: what a fresh interpreter has loaded after a plug-in's module was imported."""

import os
import subprocess
import sys

HEAVY = frozenset(
    {
        "torch",
        "mlflow",
        "onnx",
        "sklearn",
        "lightgbm",
        "scipy",
        "polars",
        "pandas",
        "numba",
        "gymnasium",
        "optuna",
        "talib",
    }
)
"""What the service's own process never loads to list what is installed and to answer predictions."""


def heavy_libraries_after(statements: str, *arguments: str) -> set[str]:
    """Which of the heavy libraries these statements load, run with the arguments in `sys.argv[1:]`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import importlib, sys\n{statements}\nprint(*sys.modules)", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()) & HEAVY
