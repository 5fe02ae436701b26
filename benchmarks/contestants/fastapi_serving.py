"""Serving, the plain control: FastAPI, pydantic and onnxruntime, as one writes it first; no key, no queue, no ledger.

python fastapi_serving.py folder port
"""

import sys

import uvicorn
from bare_serving import forecast
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Request(BaseModel):
    """What is asked."""

    symbol: str
    timeframe: str
    features: dict[str, list[float]]
    price: float | None = None


class Answer(BaseModel):
    """What is said."""

    prediction: float


@app.get("/health")
async def health() -> dict[str, str]:
    """That it is there."""
    return {"status": "healthy"}


@app.post("/predict")
async def predict(request: Request) -> Answer:
    """One window."""
    return Answer(prediction=forecast(request.features))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
