"""Serving, `mlflow models serve`: the graph behind a pyfunc with a tensor signature, one worker.

python mlflow_serving.py folder port
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


class Forecast(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Rows (N, T, F) in, a forecast each out."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        """Window by window."""
        from bare_serving import forecast_of_rows

        return np.array([forecast_of_rows(np.array(each)) for each in model_input])


def main() -> None:
    """Writes the model and becomes the server."""
    here, model = str(Path(__file__).parent), Path(sys.argv[1]) / "mlflow"
    shutil.rmtree(model, ignore_errors=True)
    rows = Schema([TensorSpec(np.dtype("float64"), (-1, -1, -1))])
    signature = ModelSignature(inputs=rows, outputs=Schema([TensorSpec(np.dtype("float64"), (-1,))]))
    mlflow.pyfunc.save_model(str(model), python_model=Forecast(), signature=signature, pip_requirements=[])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by its name
    environment = {**os.environ, "GIVEN": sys.argv[1], "PYTHONPATH": here, "PATH": path}
    served = ["models", "serve", "--model-uri", str(model), "--host", "127.0.0.1", "--port", sys.argv[2]]
    command = [sys.executable, "-m", "mlflow", *served, "--env-manager", "local", "--workers", "1"]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
