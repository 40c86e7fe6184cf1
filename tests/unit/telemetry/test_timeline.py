"""Timelines: nothing lost, nothing torn, everything under its parent."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.telemetry.recorded import RecordedSpan, read_spans
from realloc.telemetry.timeline import chrome_trace, trace_events


def recorded(
    span_id: str, parent: str, start: int, end: int, instance: str = "a", **more: Any
) -> RecordedSpan:
    fields = {
        "trace_id": "t",
        "name": f"span {span_id}",
        "service": "service",
        "attributes": {},
        "error": "",
    }
    return RecordedSpan(
        span_id=span_id,
        parent_id=parent,
        start_nanoseconds=start,
        end_nanoseconds=end,
        instance=instance,
        **(fields | more),
    )


def slices(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


@st.composite
def traces(draw: st.DrawFn) -> list[RecordedSpan]:
    """Trees of spans; children may outlive or overlap each other and their parents."""
    spans = []
    for index in range(draw(st.integers(0, 25))):
        start = draw(st.integers(0, 30))
        parent = str(draw(st.integers(0, index - 1))) if index and draw(st.booleans()) else ""
        lane = draw(st.sampled_from(["", "engine"]))
        spans.append(
            recorded(
                str(index),
                parent,
                start * 1000,
                (start + draw(st.integers(0, 30))) * 1000,
                draw(st.sampled_from("ab")),
                attributes={"realloc.lane": lane},
            )
        )
    return spans


def ancestors(span: RecordedSpan, by_id: dict[str, RecordedSpan]) -> set[str]:
    found: set[str] = set()
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        found.add(span.span_id)
    return found


@settings(max_examples=300, deadline=None)
@given(spans=traces())
def test_slices_of_a_thread_are_nested_in_ancestors_or_apart(spans: list[RecordedSpan]) -> None:
    """Every span is drawn once with its times; on a thread none overlaps a stranger."""
    by_id = {span.span_id: span for span in spans}
    events = slices(chrome_trace(spans))
    assert sorted(event["args"]["span_id"] for event in events) == sorted(by_id)
    origin = min((span.start_nanoseconds for span in spans), default=0)
    for event in events:
        span = by_id[event["args"]["span_id"]]
        assert event["ts"] == (span.start_nanoseconds - origin) / 1000
        assert event["dur"] == (span.end_nanoseconds - span.start_nanoseconds) / 1000
    for first in events:
        for second in events:
            if first is second or (first["pid"], first["tid"]) != (second["pid"], second["tid"]):
                continue
            a, b = (by_id[event["args"]["span_id"]] for event in (first, second))
            overlap = min(a.end_nanoseconds, b.end_nanoseconds) - max(
                a.start_nanoseconds, b.start_nanoseconds
            )
            if overlap > 0:
                outer, inner = (a, b) if a.span_id in ancestors(b, by_id) else (b, a)
                assert outer.span_id in ancestors(inner, by_id)
                assert outer.start_nanoseconds <= inner.start_nanoseconds
                assert inner.end_nanoseconds <= outer.end_nanoseconds


def test_spans_that_fit_lie_beneath_their_parents() -> None:
    """A child on its parent's thread, also where both start or end at the same moment."""
    spans = [
        recorded("9", "", 0, 10_000),
        recorded("8", "9", 0, 10_000),
        recorded("7", "8", 0, 4_000),
        recorded("6", "8", 4_000, 10_000),
        recorded("5", "8", 5_000, 6_000),
    ]
    rows = {event["args"]["span_id"]: event["tid"] for event in slices(chrome_trace(spans))}
    assert rows["9"] == rows["8"] == rows["7"] == rows["6"]
    assert rows["5"] != rows["6"], "they overlap and neither is the other's ancestor"


def test_processes_threads_and_arrows_are_labelled() -> None:
    """Processes carry instance names, threads their lanes; arrows join the processes."""
    spans = [
        recorded("1", "", 10**18, 10**18 + 9000, "scheduler", name="iteration"),
        recorded("2", "1", 10**18 + 1000, 10**18 + 8000, "scheduler", name="p.q.Trainer/Run"),
        recorded(
            "3",
            "2",
            10**18 + 2000,
            10**18 + 7000,
            "trainer-0",
            name="function_call.rank",
            attributes={"realloc.lane": "engine", "realloc.call": "actor_train"},
            error="out of memory",
        ),
    ]
    trace = chrome_trace(spans)
    json.dumps(trace)
    labels = {
        (event["name"], event["args"].get("name"))
        for event in trace["traceEvents"]
        if event["ph"] == "M"
    }
    assert {
        ("process_name", "scheduler"),
        ("process_name", "trainer-0"),
        ("thread_name", "engine"),
        ("thread_name", "main"),
    } <= labels
    first, second, third = slices(trace)
    assert (first["ts"], second["ts"], third["dur"]) == (0.0, 1.0, 5.0)
    assert second["name"] == "Trainer/Run"
    assert second["tid"] == first["tid"]
    assert third["name"] == "function_call.rank actor_train"
    assert third["args"]["error"] == "out of memory"
    arrows = [event for event in trace["traceEvents"] if event["ph"] in "sf"]
    assert [(arrow["ph"], arrow["pid"], arrow["ts"]) for arrow in arrows] == [
        ("s", first["pid"], 2.0),
        ("f", third["pid"], 2.0),
    ]


def test_half_written_lines_and_other_traces_are_left_out(tmp_path: Path) -> None:
    """A file that is being written, or holds other traces, is read as far as it goes."""

    def line(trace_id: str) -> str:
        span = {
            "traceId": trace_id,
            "spanId": "1",
            "name": "n",
            "startTimeUnixNano": "5",
            "endTimeUnixNano": "7",
            "attributes": [
                {"key": "i", "value": {"intValue": "3"}},
                {"key": "l", "value": {"arrayValue": {"values": [{"boolValue": True}]}}},
            ],
        }
        return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})

    path = tmp_path / "a.otlp.jsonl"
    path.write_text(f"{line('aa')}\n{line('bb')}\nnonsense aa\n{line('aa')[:-9]}")
    (found,) = read_spans(tmp_path, "aa")
    assert found.attributes == {"i": 3, "l": [True]}
    assert found.seconds == 2e-9
    assert read_spans(tmp_path, "cc") == ()
    assert len(slices(json.loads(trace_events(tmp_path, "bb")))) == 1
    assert json.loads(trace_events(tmp_path, "cc"))["traceEvents"] == []
