"""The spans of one job: the job, its iterations, its function calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from opentelemetry import trace

from realloc.dataflow.graph import FunctionCall
from realloc.telemetry.names import Attribute, Span


class JobSpans:
    """The span of a job, current while the context is open; the trace has an id of its own."""

    def __init__(self, job_id: str, algorithm: str) -> None:
        self._tracer = trace.get_tracer(__name__)
        self._scope = self._tracer.start_as_current_span(
            Span.JOB,
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            attributes={Attribute.JOB_ID: job_id, Attribute.ALGORITHM: algorithm},
        )
        self.trace_id = ""
        """32 hexadecimal digits."""

    def __enter__(self) -> Self:
        span = self._scope.__enter__()
        self.trace_id = format(span.get_span_context().trace_id, "032x")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, traceback)

    @contextmanager
    def iteration(self, iteration: int) -> Iterator[None]:
        """The span of one iteration."""
        with self._tracer.start_as_current_span(
            Span.ITERATION, attributes={Attribute.ITERATION: iteration}
        ):
            yield

    @contextmanager
    def call(self, call: FunctionCall, iteration: int) -> Iterator[None]:
        """The span of one function call."""
        with self._tracer.start_as_current_span(
            Span.FUNCTION_CALL,
            attributes={
                Attribute.CALL: call.name,
                Attribute.CALL_KIND: call.kind.value,
                Attribute.MODEL_ID: call.model,
                Attribute.ITERATION: iteration,
            },
        ):
            yield
