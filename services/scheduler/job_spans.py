"""The spans of one job: the job, its iterations, its function calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from opentelemetry import trace

from realloc.dataflow.graph import FunctionCall
from realloc.telemetry import names


class JobSpans:
    """The span of a job, current while the context is open; the trace has an id of its own."""

    def __init__(self, job_id: str, algorithm: str) -> None:
        self._tracer = trace.get_tracer(__name__)
        self._scope = self._tracer.start_as_current_span(
            names.JOB,
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            attributes={names.JOB_ID: job_id, names.ALGORITHM: algorithm},
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
            names.ITERATION, attributes={names.ITERATION_NUMBER: iteration}
        ):
            yield

    @contextmanager
    def call(self, call: FunctionCall, iteration: int) -> Iterator[None]:
        """The span of one function call."""
        with self._tracer.start_as_current_span(
            names.FUNCTION_CALL,
            attributes={
                names.CALL_NAME: call.name,
                names.CALL_KIND: call.kind.value,
                names.MODEL_ID: call.model,
                names.ITERATION_NUMBER: iteration,
            },
        ):
            yield
