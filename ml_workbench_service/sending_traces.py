"""Sending traces: what a process with settings does at its start where `TRACES` is set."""

import asyncio
from contextlib import AsyncExitStack

from common_lib.tracing import configure_tracing, end_tracing
from ml_workbench_service import __version__
from ml_workbench_service.settings import Settings


def send_traces(settings: Settings, process: str) -> None:
    """This process sends its spans from now on, as this process of the service."""
    from ml_workbench_service.integrations.span_export import SpanExport  # it imports OpenTelemetry

    endpoint, service = settings.OTEL_EXPORTER_OTLP_ENDPOINT, settings.OTEL_SERVICE_NAME
    configure_tracing(SpanExport(endpoint, service=service, version=__version__, process=process))


async def traced_until(stack: AsyncExitStack, settings: Settings, process: str) -> None:
    """The same where it is asked for, until the stack is closed."""
    if settings.TRACES:
        await asyncio.to_thread(send_traces, settings, process)
        stack.push_async_callback(asyncio.to_thread, end_tracing)
