"""What services send to a collector: received here by the collector's own protocol."""

import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from realloc.telemetry.names import Attribute, Metric, Span
from realloc.telemetry.setup import BUCKETS, meter_provider, tracer_provider
from realloc.telemetry.spans import span


class Collector(
    trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer
):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.resources: list[Resource] = []
        self.spans: dict[str, dict[str, str]] = {}
        self.metrics: dict[str, metrics_service_pb2.ExportMetricsServiceRequest] = {}
        self.lock = threading.Lock()

    def Export(self, request, context):
        with self.lock:
            if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
                for each in request.resource_spans:
                    self.resources.append(each.resource)
                    for one in (one for scope in each.scope_spans for one in scope.spans):
                        self.spans[one.name] = {
                            item.key: item.value.string_value for item in one.attributes
                        }
                return trace_service_pb2.ExportTraceServiceResponse()
            for each in request.resource_metrics:
                self.resources.append(each.resource)
                for one in (one for scope in each.scope_metrics for one in scope.metrics):
                    self.metrics[one.name] = one
            return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A listening collector, and its endpoint as services are given it."""
    servicer = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def test_spans_and_metrics_arrive_with_the_name_of_the_process(
    collector: tuple[Collector, str],
) -> None:
    """A collector gets spans with attributes, and histograms with the buckets of their unit; both
    say which process they are of, which becomes the labels job and instance."""
    received, endpoint = collector
    tracers = tracer_provider("trainer", "trainer-3", otlp_endpoint=endpoint)
    meters = meter_provider("trainer", "trainer-3", otlp_endpoint=endpoint)
    with span(Span.TRAIN_STEP, {Attribute.CALL: "actor_train"}, tracer=tracers.get_tracer("t")):
        pass
    metric = Metric.REALLOCATION_BANDWIDTH
    histogram = meters.get_meter("t").create_histogram(metric, metric.unit, metric.meaning)
    histogram.record(2e9, {Attribute.MODEL_ID: "actor"})
    tracers.shutdown()
    meters.shutdown()
    assert received.spans["train.step"][Attribute.CALL] == "actor_train"
    (point,) = received.metrics[metric].histogram.data_points
    assert tuple(point.explicit_bounds) == BUCKETS["By/s"]
    for resource in received.resources:
        said = {item.key: item.value.string_value for item in resource.attributes}
        assert (said["service.namespace"], said["service.name"]) == ("realloc", "trainer")
        assert said["service.instance.id"] == "trainer-3"


def test_a_collector_that_is_away_stops_nobody() -> None:
    """Shutting down with nobody listening takes a few seconds at most and raises nothing."""
    tracers = tracer_provider("trainer", "trainer-3", otlp_endpoint="http://127.0.0.1:1")
    with span(Span.TRAIN_STEP, tracer=tracers.get_tracer("t")):
        pass
    done = threading.Thread(target=tracers.shutdown, daemon=True)
    done.start()
    done.join(timeout=30)
    assert not done.is_alive()
