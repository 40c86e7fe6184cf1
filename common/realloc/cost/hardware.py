"""What a device and its links can do: the numbers behind every estimate."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from realloc.core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of device, as a roofline with a fixed overhead per call."""

    flops_per_second: float
    """Dense matrix multiplication that a real kernel reaches, in the training dtype."""
    memory_bytes_per_second: float
    """Device memory bandwidth."""
    link_bytes_per_second: float
    """Point to point between two devices of a node, one direction."""
    link_latency_seconds: float
    """Of one message or one step of a collective."""
    layer_overhead_seconds: float
    """Launches and framework per layer and pass."""
    call_overhead_seconds: float
    """Scheduling, batch transfer and framework per function call."""
    step_overhead_seconds: float
    """Per decoded token of a batch."""


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        # One core of a shared x86 machine with the tiny models of the examples; measured there.
        "cpu": Hardware(
            flops_per_second=2.0e10,
            memory_bytes_per_second=8e9,
            link_bytes_per_second=1e9,
            link_latency_seconds=2e-4,
            layer_overhead_seconds=1.5e-3,
            call_overhead_seconds=0.03,
            step_overhead_seconds=8e-3,
        ),
        # NVIDIA's data sheets (dense bf16, HBM, NVLink per direction), flops at 50 %.
        "A100": Hardware(
            flops_per_second=0.5 * 312e12,
            memory_bytes_per_second=2.039e12,
            link_bytes_per_second=300e9,
            link_latency_seconds=1e-5,
            layer_overhead_seconds=1e-4,
            call_overhead_seconds=0.05,
            step_overhead_seconds=2e-3,
        ),
        "H100": Hardware(
            flops_per_second=0.5 * 989e12,
            memory_bytes_per_second=3.35e12,
            link_bytes_per_second=450e9,
            link_latency_seconds=1e-5,
            layer_overhead_seconds=1e-4,
            call_overhead_seconds=0.05,
            step_overhead_seconds=2e-3,
        ),
        "H200": Hardware(
            flops_per_second=0.5 * 989e12,
            memory_bytes_per_second=4.8e12,
            link_bytes_per_second=450e9,
            link_latency_seconds=1e-5,
            layer_overhead_seconds=1e-4,
            call_overhead_seconds=0.05,
            step_overhead_seconds=2e-3,
        ),
    }
)


def hardware_of(device_kind: str) -> Hardware:
    """The preset of a device kind.

    Raises:
        InvalidInput: there is none.
    """
    if device_kind not in HARDWARE:
        known = ", ".join(sorted(HARDWARE))
        raise InvalidInput.at("cluster.device_kind", f"{device_kind!r} is unknown; known: {known}")
    return HARDWARE[device_kind]
