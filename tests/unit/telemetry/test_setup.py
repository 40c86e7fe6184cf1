"""Starting telemetry: logs with trace ids, spans in files, nothing that hangs."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from opentelemetry import trace

from realloc.core.errors import InvalidInput
from realloc.telemetry import setup
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.recorded import orphans, read_spans
from realloc.telemetry.spans import current_traceparent, span, trace_id_of


@pytest.fixture
def logs() -> Iterator[None]:
    """Puts the standard library's and structlog's configuration back."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logs")
def test_log_lines_are_json_with_the_ids_of_their_span(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Our events and libraries' warnings are JSON on stderr, tied to the current span."""
    setup.start_logs("trainer-0", "info")
    tracer = setup.tracer_provider("trainer", "trainer-0").get_tracer("test")
    log = structlog.get_logger()
    with tracer.start_as_current_span("work") as current:
        log.info("weights reallocated", moved_bytes=3)
        logging.getLogger("some.library").warning("took %s s", 4)
    log.debug("too much")
    logging.getLogger("some.library").info("chatter")
    captured = capsys.readouterr()
    ours, theirs = (json.loads(line) for line in captured.err.splitlines())
    trace_id = trace.format_trace_id(current.get_span_context().trace_id)
    assert ours["event"] == "weights reallocated"
    assert ours["moved_bytes"] == 3
    assert (ours["level"], ours["service"], ours["trace_id"]) == ("info", "trainer-0", trace_id)
    assert len(ours["span_id"]) == 16
    assert "timestamp" in ours
    assert theirs["event"] == "took 4 s"
    assert (theirs["logger"], theirs["trace_id"]) == ("some.library", trace_id)
    assert captured.out == ""


@pytest.mark.usefixtures("logs")
def test_exceptions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is a field of its event, so that a line stays an event."""
    setup.start_logs("trainer-0", "info")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger().exception("call failed")
    event = json.loads(capsys.readouterr().err)
    assert "RuntimeError: broken" in event["exception"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [({"log_level": "loud"}, "log_level"), ({"trace_dir": "/dev/null/x"}, "trace_dir")],
)
@pytest.mark.usefixtures("logs")
def test_wrong_settings_are_named(changes: dict[str, str], path: str) -> None:
    """An unknown level or a folder that cannot be written is an InvalidInput at its field."""
    with pytest.raises(InvalidInput) as caught:
        setup.start(service="trainer", instance="trainer-0", **changes)
    assert caught.value.problems[0].path == path


def test_spans_are_in_the_file_before_the_process_ends(tmp_path: Path) -> None:
    """Half a second after its end a span can be read, without a shutdown."""
    provider = setup.tracer_provider("trainer", "trainer/0", str(tmp_path))
    tracer = provider.get_tracer("test")
    with span(Span.ITERATION, {Attribute.ITERATION: 3}, tracer=tracer) as current:
        pass
    trace_id = trace.format_trace_id(current.get_span_context().trace_id)
    deadline = time.monotonic() + 60
    while not read_spans(tmp_path, trace_id) and time.monotonic() < deadline:
        time.sleep(0.02)  # polls another thread's file; the deadline decides
    (found,) = read_spans(tmp_path, trace_id)
    assert (found.name, found.service, found.instance) == ("iteration", "trainer", "trainer/0")
    assert found.attributes == {"realloc.iteration": 3}
    provider.shutdown()


def test_a_kept_parent_continues_its_trace(tmp_path: Path) -> None:
    """A traceparent kept as text makes spans of another process children: no orphans."""
    scheduler = setup.tracer_provider("scheduler", "scheduler-0", str(tmp_path))
    successor = setup.tracer_provider("scheduler", "scheduler-1", str(tmp_path))
    with span(Span.JOB, tracer=scheduler.get_tracer("test")):
        kept = current_traceparent()
    with (
        pytest.raises(RuntimeError),
        span(Span.ITERATION, parent=kept, tracer=successor.get_tracer("test")),
    ):
        raise RuntimeError("a rank died")
    scheduler.shutdown()
    successor.shutdown()
    job, iteration = read_spans(tmp_path, trace_id_of(kept))
    assert (iteration.parent_id, job.parent_id) == (job.span_id, "")
    assert (iteration.error, job.error) == ("a rank died", "")
    assert iteration.attributes["realloc.error"] == "RuntimeError"
    assert not orphans((job, iteration))
    assert orphans((iteration,)) == (iteration,)


def test_a_process_with_a_dead_collector_ends_soon(tmp_path: Path) -> None:
    """Metrics and spans are flushed at the end; a collector that is away does not hold it."""
    code = f"""
import time
from realloc.telemetry import setup, spans, names
telemetry = setup.start(service="s", instance="s-0", trace_dir={str(tmp_path)!r},
                        otlp_endpoint="http://127.0.0.1:1")
with spans.span(names.Span.JOB):
    spans.record(names.Metric.REALLOCATED_BYTES, 5, {{"kind": "local"}})
    spans.record(names.Metric.ITERATION_SECONDS, 0.2)
    spans.record(names.Metric.REWARD, 0.5)
start = time.monotonic()
telemetry.shutdown()
assert time.monotonic() - start < 60
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"name":"job"' in (tmp_path / "s-0.otlp.jsonl").read_text()
    metrics = (tmp_path / "s-0.metrics.jsonl").read_text()
    for name in ("realloc.reallocation.bytes", "realloc.iteration.duration", "realloc.reward.mean"):
        assert name in metrics
    for line in done.stderr.splitlines():
        json.loads(line)
