"""Work of the engine's thread, timed from the moment at which its turn had come."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from realloc.api.trainer.v1 import trainer_pb2 as pb
from realloc.telemetry.names import Attribute, Metric, Span
from realloc.telemetry.spans import Attributes, current_traceparent, record, span

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(Generic[Result]):
    """What work returned, and how long it took."""

    value: Result
    seconds: float


def timed(work: Callable[[], Result]) -> Callable[[], Timed[Result]]:
    """The work, timed once the engine's thread gets to it."""

    def run() -> Timed[Result]:
        started = time.monotonic()
        value = work()
        return Timed(value=value, seconds=time.monotonic() - started)

    return run


def timed_call(
    request: pb.RunInferenceRequest | pb.RunTrainingRequest, work: Callable[[], Result]
) -> Callable[[], Timed[Result]]:
    """The same under a span of its own, and counted as time in which the device was busy."""
    parent = current_traceparent()
    attributes: Attributes = {
        Attribute.CALL: request.call,
        Attribute.MODEL_ID: request.model_id,
        Attribute.ITERATION: request.iteration,
        Attribute.CALL_SEQUENCE: request.sequence,
    }
    run = timed(work)

    def spanned() -> Timed[Result]:
        with span(Span.FUNCTION_CALL_RANK, attributes, parent=parent):
            done = run()
        record(Metric.DEVICE_BUSY_SECONDS, done.seconds, {Attribute.CALL: request.call})
        return done

    return spanned
