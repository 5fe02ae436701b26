"""Sending traces: what a process with settings does at its start where `TRACES` is set."""

from common_lib.tracing import configure_tracing
from ml_workbench_service import __version__
from ml_workbench_service.settings import Settings


def send_traces(settings: Settings, process: str) -> None:
    """This process sends its spans from now on, as this process of the service."""
    from ml_workbench_service.integrations.span_export import SpanExport  # it imports OpenTelemetry

    endpoint, service = settings.OTEL_EXPORTER_OTLP_ENDPOINT, settings.OTEL_SERVICE_NAME
    configure_tracing(SpanExport(endpoint, service=service, version=__version__, process=process))
