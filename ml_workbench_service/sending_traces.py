"""Sending traces: what a process with settings does at its start where `TRACES` is set."""

from common_lib.tracing import configure_tracing
from ml_workbench_service import __version__
from ml_workbench_service.settings import Settings


def send_traces(settings: Settings, process: str) -> None:
    """This process sends its spans from now on, as this process of the service."""
    configure_tracing(
        settings.OTEL_EXPORTER_OTLP_ENDPOINT,
        service=settings.OTEL_SERVICE_NAME,
        version=__version__,
        process=process,
    )
