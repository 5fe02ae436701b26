"""Start-up, the control: FastAPI, onnxruntime and a `/health`, and nothing else."""

import os

import onnxruntime
import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/health")
async def health() -> dict[str, str]:
    """That it is there."""
    return {"status": "healthy", "onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_config=None, access_log=False)
