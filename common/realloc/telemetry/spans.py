"""Spans and metrics by the names of `names`.

    with span(Span.REALLOCATION, {Attribute.MODEL_ID: "actor"}) as current:
        current.set_attribute(Attribute.DIGEST_OK, True)

    observe(Metric.MEMBERS, count_by_kind, Attribute.MEMBER_KIND)

    text = current_traceparent()                      # kept with a job in etcd …
    with span(Span.JOB, {...}, parent=text): ...      # … so that whoever runs it goes on

Without `setup.start` all of this does nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from realloc.telemetry import names

Attributes = Mapping[Any, AttributeValue]


@contextmanager
def span(
    name: names.Span,
    attributes: Attributes | None = None,
    *,
    parent: str | None = None,
    tracer: trace.Tracer | None = None,
) -> Iterator[trace.Span]:
    """A span around the body, a child of the current one or of a kept `parent`.

    An exception, a cancellation included, makes it an error and goes on.
    """
    tracer = tracer or trace.get_tracer("realloc")
    with tracer.start_as_current_span(
        name,
        context=_context(parent),
        attributes={str(key): value for key, value in (attributes or {}).items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            text = "cancelled" if isinstance(error, asyncio.CancelledError) else str(error)
            current.set_attribute(names.Attribute.ERROR_CLASS, type(error).__name__)
            current.set_status(Status(StatusCode.ERROR, text))
            raise


def current_traceparent() -> str:
    """The current span as a W3C ``traceparent``; empty where there is none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id_of(traceparent: str) -> str:
    """The trace id (32 hex digits) of a ``traceparent``; empty where there is none."""
    span_context = trace.get_current_span(_context(traceparent or None)).get_span_context()
    return trace.format_trace_id(span_context.trace_id) if traceparent else ""


def record(metric: names.Metric, value: float, attributes: Attributes | None = None) -> None:
    """Add to a counter, set a gauge, or record into a histogram."""
    _recorder(metric)(value, {str(key): item for key, item in (attributes or {}).items()})


def observe(
    metric: names.Metric, values: Callable[[], Mapping[str, float]], attribute: names.Attribute
) -> None:
    """Let a metric be read from a callback, which any thread may call, at each export.

    Args:
        values: number by value of the attribute.
    """

    def read(_: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [metrics.Observation(number, {attribute: key}) for key, number in values().items()]

    assert metric.instrument is names.Instrument.OBSERVED, metric
    meter = metrics.get_meter("realloc")
    meter.create_observable_gauge(metric, [read], metric.unit, metric.meaning)


def _context(parent: str | None) -> context.Context | None:
    return propagate.extract({"traceparent": parent}) if parent else None


@cache
def _recorder(metric: names.Metric) -> Any:
    """OpenTelemetry wants each instrument made once per process."""
    meter = metrics.get_meter("realloc")
    unit, text = metric.unit, metric.meaning
    match metric.instrument:
        case names.Instrument.COUNTER:
            return meter.create_counter(metric, unit, text).add
        case names.Instrument.GAUGE:
            return meter.create_gauge(metric, unit, text).set
        case names.Instrument.HISTOGRAM:
            return meter.create_histogram(metric, unit, text).record
        case names.Instrument.OBSERVED:
            raise ValueError(f"{metric} is observed, not recorded")
