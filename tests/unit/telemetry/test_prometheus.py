"""Names of metrics in Prometheus."""

import subprocess
import sys
from pathlib import Path

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest

from realloc.telemetry.names import Attribute, Instrument, Metric, Span
from realloc.telemetry.prometheus import label_name, series_names

ROOT = Path(__file__).resolve().parents[3]


def test_names_are_those_that_opentelemetry_makes():
    """OpenTelemetry's own exporter, fed with each metric, exposes series of these names."""
    reader = PrometheusMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    for metric in Metric:
        make = {
            Instrument.COUNTER: lambda *a: meter.create_counter(*a).add,
            Instrument.HISTOGRAM: lambda *a: meter.create_histogram(*a).record,
        }.get(metric.instrument, lambda *a: meter.create_gauge(*a).set)
        make(metric, metric.unit, metric.meaning)(1.0, {Attribute.MODEL_ID: "actor"})
    lines = generate_latest(REGISTRY).decode().splitlines()
    found = {line.partition("{")[0] for line in lines if 'realloc_model_id="actor"' in line}
    assert label_name(Attribute.MODEL_ID) == "realloc_model_id"
    assert {name for metric in Metric for name in series_names(metric)} == found


def test_every_name_is_used():
    """Each span, metric and attribute is named by code that opens, records or sets it."""
    folders = [ROOT / "common", ROOT / "services"]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    names = ROOT / "common" / "realloc" / "telemetry" / "names.py"
    code = "\n".join(path.read_text() for path in sources if path != names)
    code += names.read_text().partition("def rpc_attributes")[2]
    for kind in (Span, Metric, Attribute):
        unused = [name for name in kind.__members__ if f"{kind.__name__}.{name}" not in code]
        assert unused == [], kind.__name__


def test_the_page_is_fresh():
    """docs/telemetry.md is what tools/telemetry_page.py writes."""
    command = [sys.executable, str(ROOT / "tools" / "telemetry_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
