"""Starts logs, traces and metrics of a process, and flushes them at its end.

Logs are JSON lines on stderr, each with the ids of the span it was written in; those of
libraries too, from warnings on. Spans and metrics go to an OTLP collector, to OTLP-JSON files
in a folder (``<instance>.otlp.jsonl``, ``<instance>.metrics.jsonl``), to both, or nowhere.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from realloc.core.errors import InvalidInput

SPAN_FLUSH_SECONDS = 0.5
METRIC_FLUSH_SECONDS = 5.0
EXPORT_TIMEOUT_SECONDS = 5.0
MAX_QUEUED_SPANS = 65_536
"""Spans beyond it are dropped: a collector that is away must not fill the memory."""

BUCKETS = {
    "s": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    "By/s": (1e6, 1e7, 1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11, 3e11, 1e12),
    "1": (1.0, 1.001, 1.01, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 10.0),
}
"""Upper bounds of histograms by unit; OpenTelemetry's default ones are meant for milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What was started, to be shut down at the end of the process."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider

    def shutdown(self) -> None:
        """Write out what is still queued; returns within a few seconds."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown(timeout_millis=EXPORT_TIMEOUT_SECONDS * 1000)


def start(
    *,
    service: str,
    instance: str,
    log_level: str = "info",
    trace_dir: str = "",
    otlp_endpoint: str = "",
) -> Telemetry:
    """Set the process's global logger, tracer and meter up; once per process.

    Raises:
        InvalidInput: an unknown log level, or a folder that cannot be written.
    """
    start_logs(instance, log_level)
    telemetry = Telemetry(
        tracer_provider=tracer_provider(service, instance, trace_dir, otlp_endpoint),
        meter_provider=meter_provider(service, instance, trace_dir, otlp_endpoint),
    )
    trace.set_tracer_provider(telemetry.tracer_provider)
    metrics.set_meter_provider(telemetry.meter_provider)
    return telemetry


def tracer_provider(
    service: str, instance: str, trace_dir: str = "", otlp_endpoint: str = ""
) -> TracerProvider:
    """Spans of one service instance, exported twice a second and at shutdown."""
    provider = TracerProvider(resource=_resource(service, instance))
    exporters: list[SpanExporter] = []
    if trace_dir:
        from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter

        exporters.append(FileSpanExporter(_file(trace_dir, instance, "otlp.jsonl")))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporters.append(OTLPSpanExporter(otlp_endpoint, timeout=EXPORT_TIMEOUT_SECONDS))
    for exporter in exporters:
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=SPAN_FLUSH_SECONDS * 1000,
        )
        provider.add_span_processor(processor)
    return provider


def meter_provider(
    service: str, instance: str, trace_dir: str = "", otlp_endpoint: str = ""
) -> MeterProvider:
    """Metrics of one service instance, exported every five seconds and at shutdown."""
    exporters: list[Any] = []
    if trace_dir:
        from opentelemetry.exporter.otlp.json.file.metric_exporter import FileMetricExporter

        exporters.append(FileMetricExporter(_file(trace_dir, instance, "metrics.jsonl")))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        exporters.append(OTLPMetricExporter(otlp_endpoint, timeout=EXPORT_TIMEOUT_SECONDS))
    readers: list[MetricReader] = [
        PeriodicExportingMetricReader(exporter, METRIC_FLUSH_SECONDS * 1000)
        for exporter in exporters
    ]
    return MeterProvider(
        metric_readers=readers,
        resource=_resource(service, instance),
        views=[
            View(
                instrument_type=Histogram,
                instrument_unit=unit,
                aggregation=ExplicitBucketHistogramAggregation(bounds),
            )
            for unit, bounds in BUCKETS.items()
        ],
    )


def start_logs(instance: str, log_level: str) -> None:
    """JSON lines on stderr, for structlog and for the standard library's loggers."""
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise InvalidInput.at("log_level", f"is {log_level!r}; debug, info, warning or error")
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Instance(instance),
        _add_span_ids,
    ]
    rendered: list[Any] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
    structlog.configure(
        processors=shared + rendered,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


@dataclass(frozen=True, slots=True)
class _Instance:
    """Adds the name of the process to each event."""

    name: str

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["service"] = self.name
        return event


def _add_span_ids(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _resource(service: str, instance: str) -> Resource:
    return Resource.create(
        {"service.name": service, "service.namespace": "realloc", "service.instance.id": instance}
    )


def _file(folder: str, instance: str, ending: str) -> Path:
    path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', instance)}.{ending}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise InvalidInput.at(
            "trace_dir", f"{folder} cannot be written: {error.strerror}"
        ) from None
    return path
