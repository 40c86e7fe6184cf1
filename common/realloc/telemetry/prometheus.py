"""What a metric is called once an OpenTelemetry collector has handed it to Prometheus.

The rules are those of OpenTelemetry's specification, "Prometheus and OpenMetrics
Compatibility": dots become underscores, the unit and, for counters, ``total`` are appended.
Standard library only.
"""

import re

from realloc.telemetry.names import Attribute, Instrument, Metric

_UNITS = {"s": "seconds", "By": "bytes", "By/s": "bytes_per_second", "1": ""}

RESOURCE_LABELS = ("job", "instance")
"""Labels of every series: ``realloc/<service>`` and the name of the process."""


def series_names(metric: Metric) -> tuple[str, ...]:
    """Names of all series of a metric: three for a histogram, one for the others."""
    assert metric.unit != "1" or metric.instrument is Instrument.HISTOGRAM, (
        f"{metric}: collectors call a gauge of unit 1 a ratio; give it a unit in braces"
    )
    name = _underscored(metric)
    unit = "" if metric.unit.startswith("{") else _UNITS.get(metric.unit, metric.unit)
    if unit and not name.endswith(f"_{unit}"):
        name += f"_{unit}"
    if metric.instrument is Instrument.COUNTER:
        return (f"{name}_total",)
    if metric.instrument is Instrument.HISTOGRAM:
        return (f"{name}_bucket", f"{name}_sum", f"{name}_count")
    return (name,)


def label_name(attribute: Attribute) -> str:
    """An attribute as a label."""
    return _underscored(attribute)


def _underscored(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]+", "_", name)
