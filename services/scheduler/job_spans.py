"""The spans of one job: the job, its iterations, its function calls."""

from collections.abc import Iterator
from contextlib import contextmanager

from realloc.dataflow.graph import FunctionCall
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import Attributes, current_traceparent, span, trace_id_of


class JobSpans:
    """Opens spans of one job's trace."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self.trace_id = trace_id_of(current_traceparent())
        """32 hexadecimal digits."""

    @contextmanager
    def iteration(self, iteration: int) -> Iterator[None]:
        """The span of one iteration."""
        attributes: Attributes = {Attribute.JOB_ID: self._job_id, Attribute.ITERATION: iteration}
        with span(Span.ITERATION, attributes):
            yield

    @contextmanager
    def call(self, call: FunctionCall, iteration: int) -> Iterator[None]:
        """The span of one function call."""
        attributes: Attributes = {
            Attribute.CALL: call.name,
            Attribute.CALL_KIND: call.kind.value,
            Attribute.MODEL_ID: call.model,
            Attribute.ITERATION: iteration,
        }
        with span(Span.FUNCTION_CALL, attributes):
            yield


@contextmanager
def job_spans(job_id: str, algorithm: str) -> Iterator[JobSpans]:
    """The span of a job, current while the context is open, in a trace of its own."""
    with span(Span.JOB, {Attribute.JOB_ID: job_id, Attribute.ALGORITHM: algorithm}):
        yield JobSpans(job_id)
