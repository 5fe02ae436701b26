"""ASGI entry point: `app` for `uvicorn ml_workbench_service.main:app`, and `python -m ml_workbench_service.main`."""

import sys

from fastapi import FastAPI
from pydantic import ValidationError

from ml_workbench_service.settings import Settings, mistakes


def read_settings() -> Settings:
    """The settings of the environment; a wrong one ends the process with a sentence for each."""
    try:
        return Settings()
    except ValidationError as error:
        for each in mistakes(error):
            sys.stderr.write(f"{each}; correct the environment variable\n")
        raise SystemExit(2) from None


def app_of(settings: Settings) -> FastAPI:
    """The service, or the predict replica that ROLE makes of it, which loads much less."""
    if settings.ROLE == "predict":
        from ml_workbench_service import predict_replica

        return predict_replica.create_app(settings)
    from ml_workbench_service.app import create_app

    return create_app(settings)


settings = read_settings()
app = app_of(settings)


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    from ml_workbench_service.http_server import serve

    serve(app, settings)


if __name__ == "__main__":
    main()
