"""Recorded spans as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

    Path("trace.json").write_bytes(trace_events(trace_dir, trace_id))

One process of the timeline per service instance; one thread per lane (the attribute
``realloc.lane``) or, where spans of a lane overlap without one containing the other, as many
as that takes: on one thread spans are nested or apart, and a span lies only inside of its
ancestors. Arrows go from a call to its execution in another process. Standard library only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realloc.telemetry.names import Attribute
from realloc.telemetry.recorded import RecordedSpan, read_spans

Event = dict[str, Any]


@dataclass(slots=True)
class _Row:
    """One thread of the timeline: the spans that are open at the present moment."""

    name: str
    thread: int
    stack: list[RecordedSpan] = field(default_factory=list)

    def takes(self, span: RecordedSpan, ancestors: set[str]) -> bool:
        """True where the span lies inside the innermost open one, which is its ancestor."""
        while self.stack and self.stack[-1].end_nanoseconds <= span.start_nanoseconds:
            self.stack.pop()
        if not self.stack:
            return True
        top = self.stack[-1]
        return top.span_id in ancestors and span.end_nanoseconds <= top.end_nanoseconds


@dataclass(slots=True)
class _Process:
    """The rows of one service instance, by lane."""

    number: int
    name: str
    rows: dict[str, list[_Row]] = field(default_factory=dict)

    def place(self, span: RecordedSpan, ancestors: set[str]) -> _Row:
        lane = str(span.attributes.get(Attribute.LANE, ""))
        rows = self.rows.setdefault(lane, [])
        fitting = [row for row in rows if row.takes(span, ancestors)]
        # Beneath its own parent if it can be, else wherever there is room.
        fitting.sort(key=lambda row: not (row.stack and row.stack[-1].span_id == span.parent_id))
        row = fitting[0] if fitting else self._add_row(lane)
        row.stack.append(span)
        return row

    def _add_row(self, lane: str) -> _Row:
        rows = self.rows[lane]
        thread = sum(len(rows) for rows in self.rows.values()) + 1
        label = lane or "main"
        rows.append(_Row(label if not rows else f"{label} {len(rows) + 1}", thread))
        return rows[-1]


def trace_events(trace_dir: str | Path, trace_id: str) -> bytes:
    """A whole trace as UTF-8 JSON text; one without events where nothing was recorded."""
    return json.dumps(chrome_trace(read_spans(trace_dir, trace_id))).encode()


def chrome_trace(spans: Sequence[RecordedSpan]) -> dict[str, Any]:
    """Chrome trace-event JSON; times in microseconds since the earliest span."""
    depths = _depths(spans)
    ordered = sorted(
        spans,
        key=lambda s: (s.start_nanoseconds, depths[s.span_id], -s.end_nanoseconds, s.span_id),
    )
    origin = ordered[0].start_nanoseconds if ordered else 0
    processes = _processes(ordered)
    by_id = {span.span_id: span for span in spans}
    events: list[Event] = []
    rows: dict[str, _Row] = {}
    for span in ordered:
        process = processes[span.service, span.instance]
        rows[span.span_id] = row = process.place(span, _ancestors(span, by_id))
        events.append(_slice(span, process.number, row.thread, origin))
    for span in ordered:
        parent = by_id.get(span.parent_id)
        if parent is not None and parent.instance != span.instance:
            for phase, end in (("s", parent), ("f", span)):
                process = processes[end.service, end.instance]
                at = max(span.start_nanoseconds, end.start_nanoseconds)
                at = min(at, end.end_nanoseconds) - origin
                events.append(_arrow(phase, span, process.number, rows[end.span_id].thread, at))
    return {
        "traceEvents": _labels(processes.values()) + events,
        "displayTimeUnit": "ms",
        "otherData": {"trace_id": spans[0].trace_id if spans else ""},
    }


def _processes(spans: Sequence[RecordedSpan]) -> dict[tuple[str, str], _Process]:
    """Numbered in the order in which they appear in the trace."""
    keys = dict.fromkeys((span.service, span.instance) for span in spans)
    return {key: _Process(number, key[1] or key[0]) for number, key in enumerate(keys, start=1)}


def _slice(span: RecordedSpan, process: int, thread: int, origin: int) -> Event:
    arguments = dict(span.attributes) | {"span_id": span.span_id}
    if span.error:
        arguments["error"] = span.error
    return {
        "ph": "X",
        "name": _label(span),
        "cat": span.service + (",error" if span.error else ""),
        "pid": process,
        "tid": thread,
        "ts": (span.start_nanoseconds - origin) / 1e3,
        "dur": (span.end_nanoseconds - span.start_nanoseconds) / 1e3,
        "args": arguments,
    }


def _label(span: RecordedSpan) -> str:
    """A function call or iteration says which; a remote call drops its package."""
    detail = span.attributes.get(Attribute.CALL, span.attributes.get(Attribute.ITERATION))
    if "/" in span.name:
        return span.name.rpartition(".")[2]
    return f"{span.name} {detail}" if detail is not None else span.name


def _arrow(phase: str, span: RecordedSpan, process: int, thread: int, at: int) -> Event:
    event: Event = {
        "ph": phase,
        "name": "call",
        "cat": "call",
        "id": span.span_id,
        "pid": process,
        "tid": thread,
        "ts": at / 1e3,
    }
    return event | {"bp": "e"} if phase == "f" else event


def _labels(processes: Any) -> list[Event]:
    events: list[Event] = []
    for process in processes:
        about = {"ph": "M", "pid": process.number}
        events.append(about | {"name": "process_name", "args": {"name": process.name}})
        order = {"sort_index": process.number}
        events.append(about | {"name": "process_sort_index", "args": order})
        for rows in process.rows.values():
            for row in rows:
                thread = about | {"tid": row.thread}
                events.append(thread | {"name": "thread_name", "args": {"name": row.name}})
    return events


def _ancestors(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> set[str]:
    found: set[str] = set()
    parent = by_id.get(span.parent_id)
    while parent is not None and parent.span_id not in found:
        found.add(parent.span_id)
        parent = by_id.get(parent.parent_id)
    return found


def _depths(spans: Sequence[RecordedSpan]) -> dict[str, int]:
    by_id = {span.span_id: span for span in spans}
    return {span.span_id: len(_ancestors(span, by_id)) for span in spans}
