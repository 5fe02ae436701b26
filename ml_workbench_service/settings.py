"""Settings: the README's table of variables, one field a row, read once in `main` from the environment."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

EMBEDDED = "embedded"
DEFAULT_FEATURE_STORE_URL = "http://localhost:8001"
DEFAULT_EXPERIMENT_TRACKING_URI = "http://localhost:5000"


class Settings(BaseSettings):
    """What the environment says; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    PORT: Annotated[int, Field(ge=0, le=65535)] = 8005
    FEATURE_STORE_URL: str | None = None
    MODEL_REGISTRY_PATH: Path = Path("./model_registry")
    EXPERIMENT_TRACKING_URI: str | None = None
    API_KEY: SecretStr | None = None
    MAX_TRAINING_MEMORY: Annotated[float, Field(gt=0, description="GB")] = 16
    CUDA_VISIBLE_DEVICES: str = "0,1"

    ACCELERATOR: str | None = None
    HOST: str = "127.0.0.1"
    STATE_DIR: Path = Path(".workbench")
    LOG_DIR: Path = Path("logs")
    LOG_FORMAT: Literal["console", "json"] = "console"
    LOG_MAX_MB: Annotated[float, Field(ge=0.001, le=100_000)] = 50
    LOG_FILES_KEPT: Annotated[int, Field(ge=1, le=1000)] = 5
    REDIS_URL: str | None = None
    STRATEGY_ENGINE_URL: str | None = None
    BARS_TIMEZONE: str | None = None
    # One script counts through a backlog, and the server waits for it: see "Choosing" in docs/operations.md.
    PREDICTION_QUEUE_CAPACITY: Annotated[int, Field(ge=1, le=50_000)] = 100
    PREDICTION_QUEUE_POLICY: Literal["drop_oldest", "reject", "block"] = "drop_oldest"
    PREDICTION_QUEUE_TTL_S: Annotated[float, Field(gt=0, le=31_536_000, description="seconds")] | None = None
    PREDICTION_QUEUE_SHARDS: Annotated[int, Field(ge=1, le=64)] = 1
    PREDICTION_LEDGER_ROWS: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    TRAINING_WORKERS: Annotated[int, Field(ge=1, le=64)] = 1
    WARM_WORKER: bool = True
    AGENT_AUTOSTART: bool = True
    SKILL_GATE: Literal["warn", "enforce"] = "warn"

    @field_validator("LOG_LEVEL", mode="before")
    @classmethod
    def _upper(cls, text: object) -> object:
        return text.upper() if isinstance(text, str) else text

    def environment(self, **resolved: str) -> dict[str, str]:
        """The environment of a child process: this one's, absolute paths, and the addresses resolved at start."""
        environment = dict(os.environ)
        environment.update(
            STATE_DIR=str(self.STATE_DIR.resolve()),
            LOG_DIR=str(self.LOG_DIR.resolve()),
            MODEL_REGISTRY_PATH=str(self.MODEL_REGISTRY_PATH.resolve()),
            # Empty hides every GPU, and must not count as unset here.
            CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", self.CUDA_VISIBLE_DEVICES),
            LOG_LEVEL=self.LOG_LEVEL,
            MAX_TRAINING_MEMORY=str(self.MAX_TRAINING_MEMORY),
            **resolved,
        )
        return environment
