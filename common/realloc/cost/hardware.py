"""What devices and their links can do: the numbers behind every estimate, each with its source.

Peaks are those of the makers' data sheets: NVIDIA A100 (DS-10031-001, 2021), H100 Tensor Core
GPU (2023), H200 (2024), DGX B200 (2024), L40S (2023): dense 16-bit tensor cores, memory, NVLink
or PCIe in one direction. Gigabytes there are 10^9 bytes. What real kernels reach of the peaks
is in `Efficiency`, which `realloc.cost.calibration` fits to measurements.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from realloc.core.errors import InvalidInput
from realloc.core.mesh import Cluster
from realloc.cost.ratios import RatioTable

GIGABIT = 1e9 / 8
"""Bytes per second of one Gb/s."""

NETWORK_GIGABITS = (100.0, 3200.0)
"""InfiniBand and RoCE per node: one 100 Gb/s EDR port to eight 400 Gb/s NDR ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What connects devices: time of a message = latency + bytes / bandwidth."""

    bytes_per_second: float
    """One direction: of one device inside a node; of a whole node on the network."""
    latency_seconds: float
    """Of a collective or message, whatever its size."""
    latency_seconds_per_rank: float = 0.0
    """Further latency for each rank of a collective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What kernels reach of the peaks, and what launching them costs: the calibrated part."""

    matrix: float
    """Of peak flops, by large matrix products."""
    memory: float
    """Of peak memory bandwidth, by elementwise kernels and weight reads."""
    unaligned: float
    """Of `matrix`, where a dimension is no multiple of 8 elements (NVIDIA, Matrix
    Multiplication Background User's Guide: tensor cores want multiples of 16 bytes)."""
    forward_launch_seconds: float
    """Host time to launch one layer's forward pass: no pass is shorter."""
    backward_launch_seconds: float
    """The same for its backward pass, without recomputation."""
    unfused_softmax_seconds: float
    """Further host time per pass where an unfused softmax stands in."""
    head_seconds: float
    """Fixed time of one pass of the head and the loss."""
    step_seconds: float
    """Fixed time of an optimizer step."""
    decode_layer_seconds: float
    """Fixed time per layer of a decoding step (CUDA graphs: kernel ramps, no launches)."""
    decode_step_seconds: float
    """Fixed time of a decoding step: scheduling, sampling."""
    decode_row_seconds: float
    """Host time of a row in a decoding step: its bookkeeping, detokenizing, streaming."""
    prefill_row_seconds: float
    """Host time to take in a prompt and to hand out its rollout."""
    frame_seconds: float
    """Fixed time of a micro-batch in the trainer's calls beside its passes: schedule, packing."""
    frame_row_seconds: float
    """Host time of a row in them: cutting, packing, and joining its results."""
    target_token_seconds: float
    """Further host time of a mini-batch for each token of its longest response: advantages are
    computed backwards token by token, over all rows at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of device in its usual node and network."""

    name: str
    flops_per_second: float
    """Peak of dense matrix products of 16-bit numbers."""
    flops_per_second_32: float
    """The same for float32 (TF32 is off in PyTorch by default)."""
    memory_bytes_per_second: float
    memory_bytes: int
    reserved_bytes: int
    """Context, communicators, workspaces, fragments: not for tensors."""
    node_link: Link
    network: Link
    host_link: Link
    """Of one device to the host's memory while all of its node copy, in one direction."""
    devices_per_node: int
    """Devices that share the network of a node."""
    efficiency: Efficiency
    call_overhead_seconds: float
    """Scheduling, dispatch and framework per function call."""
    network_efficiency: float = 0.8
    """Of the network's peak, by large NCCL messages (nccl-tests on HDR and NDR: 0.75–0.9)."""
    reduction_passes: float = 3.7
    """Memory traffic of an all-reduce in multiples of its bytes: see `realloc.cost.links`."""
    fused_kernels: bool = True
    """Layers run as fused kernels there; on CPUs they are plain torch."""
    trainer_process_bytes: int = 0
    """Of a trainer process before it has a model, where it shares the devices' memory."""
    engine_process_bytes: int = 0
    """Of a generation process, likewise."""
    prefill_tokens: int = 8192
    """Tokens that an engine prefills at once (vLLM's `max_num_batched_tokens`)."""
    decode_rows: int = 1024
    """Rows that an engine decodes at once (vLLM's `max_num_seqs`)."""
    ratios: RatioTable = field(default_factory=RatioTable)
    """What a profile measured over what the numbers above say; see `realloc.cost.profile`."""

    def peak_flops(self, element_bytes: int) -> float:
        """Peak for numbers of 2 or 4 bytes."""
        return self.flops_per_second if element_bytes <= 2 else self.flops_per_second_32

    def with_network(self, gigabits_per_second: float) -> "Hardware":
        """The same devices with another network per node.

        Raises:
            InvalidInput: outside what InfiniBand gives.
        """
        low, high = NETWORK_GIGABITS
        if not low <= gigabits_per_second <= high:
            raise InvalidInput.at(
                "network", f"is {gigabits_per_second:g} Gb/s per node; give {low:g} to {high:g}"
            )
        network = replace(self.network, bytes_per_second=gigabits_per_second * GIGABIT)
        return replace(self, network=network)

    def without_ratios(self) -> "Hardware":
        """The same devices as their peaks and efficiencies say."""
        return replace(self, ratios=RatioTable())

    def with_node_size(self, devices_per_node: int) -> "Hardware":
        """The same devices, so many to a node."""
        return replace(self, devices_per_node=devices_per_node)

    def in_cluster(self, cluster: Cluster) -> "Hardware":
        """The same devices in a cluster's nodes and on its network.

        Raises:
            InvalidInput: as `with_network`.
        """
        there = self.with_node_size(cluster.devices_per_node)
        return there.with_network(cluster.network_gigabits) if cluster.network_gigabits else there


# Fitted by tools/predict_iterations.py to 720 of 1,440 iterations of Megatron-DeepSpeed on up
# to 8 A100 (vTrain, arXiv 2312.12391), with `matrix` held near 0.75, which the iteration times
# of 22B to 1T models in Korthikanti et al. (arXiv 2205.05198, table 5) ask for.
_CUDA = Efficiency(
    matrix=0.76,
    memory=0.8,
    unaligned=0.52,
    forward_launch_seconds=0.6e-3,
    backward_launch_seconds=1.7e-3,
    unfused_softmax_seconds=0.44e-3,
    head_seconds=0.7e-3,
    step_seconds=1e-3,
    # vLLM's own benchmarks of small models: some 1 ms per step beside the layers.
    decode_layer_seconds=2e-5,
    decode_step_seconds=1e-3,
    decode_row_seconds=4e-6,
    prefill_row_seconds=1e-4,
    frame_seconds=1e-3,
    frame_row_seconds=1e-5,
    target_token_seconds=3.2e-5,
)
# Fitted to this trainer's layers on one H100 (docs/benchmarks/cost-model.md). Hopper reaches less
# of its peak, being limited by power: 0.6–0.7 for large bf16 products also elsewhere (cuBLAS
# in FlashAttention-3, arXiv 2407.08608, section 4; DeepSeek-V3, 2412.19437).
_HOPPER = replace(
    _CUDA,
    matrix=0.66,
    memory=0.85,
    forward_launch_seconds=1.25e-3,
    backward_launch_seconds=1.05e-3,
    head_seconds=1.9e-3,
    frame_seconds=1.5e-3,
    frame_row_seconds=2e-5,
)
# nccl-tests' tables of vTrain for NVSwitch of the A100: 36 µs + 5.3 µs per rank.
_NVSWITCH = Link(bytes_per_second=300e9, latency_seconds=36e-6, latency_seconds_per_rank=5.3e-6)
_INFINIBAND = Link(
    bytes_per_second=1600 * GIGABIT, latency_seconds=20e-6, latency_seconds_per_rank=2e-6
)
# PCIe 4.0 and 5.0 x16: 31.5 and 63 GB/s in one direction, of which copies from pinned memory
# reach some 0.8 (NVIDIA's nvbandwidth). In a DGX A100 two devices share one uplink (DGX A100
# System User Guide, topology); in a DGX H100 and B200 each has its own.
_PCIE4 = Link(bytes_per_second=25e9, latency_seconds=20e-6)
_PCIE5 = Link(bytes_per_second=50e9, latency_seconds=20e-6)
_A100_80 = Hardware(
    name="A100-80",
    flops_per_second=312e12,
    flops_per_second_32=19.5e12,
    memory_bytes_per_second=2.039e12,
    memory_bytes=80 * 10**9,
    reserved_bytes=3 * 10**9,
    node_link=_NVSWITCH,
    network=_INFINIBAND,  # DGX A100: eight HDR ports of 200 Gb/s
    host_link=replace(_PCIE4, bytes_per_second=_PCIE4.bytes_per_second / 2),
    devices_per_node=8,
    efficiency=_CUDA,
    call_overhead_seconds=0.05,
)
_NDR = replace(_INFINIBAND, bytes_per_second=3200 * GIGABIT)
_H100 = replace(
    _A100_80,
    name="H100",
    flops_per_second=989e12,
    flops_per_second_32=67e12,
    memory_bytes_per_second=3.35e12,
    node_link=replace(_NVSWITCH, bytes_per_second=450e9, latency_seconds=20e-6),
    network=_NDR,  # DGX H100: eight NDR ports of 400 Gb/s
    host_link=_PCIE5,
    efficiency=_HOPPER,
)
_CPU = Hardware(
    # One core of a shared x86 machine with the tiny models of the examples; measured there.
    name="cpu",
    flops_per_second=4.0e10,
    flops_per_second_32=4.0e10,
    memory_bytes_per_second=8e9,
    memory_bytes=4 * 2**30,
    reserved_bytes=0,
    node_link=Link(bytes_per_second=1e9, latency_seconds=2e-4),
    network=Link(bytes_per_second=1e9, latency_seconds=4e-4),
    host_link=Link(bytes_per_second=4e9, latency_seconds=1e-5),  # a copy within one memory
    devices_per_node=8,
    efficiency=Efficiency(
        matrix=1.0,
        memory=1.0,
        unaligned=1.0,
        forward_launch_seconds=3e-3,
        backward_launch_seconds=12e-3,
        unfused_softmax_seconds=0.0,
        head_seconds=1e-3,
        step_seconds=3e-2,
        decode_layer_seconds=1e-3,
        decode_step_seconds=6e-3,
        decode_row_seconds=2e-4,
        prefill_row_seconds=2e-4,
        frame_seconds=2e-3,
        frame_row_seconds=2e-5,
        target_token_seconds=6e-5,
    ),
    call_overhead_seconds=0.03,
    network_efficiency=1.0,
    reduction_passes=2.0,
    fused_kernels=False,
    trainer_process_bytes=430_000_000,  # measured: Python, torch, Megatron-core, gloo
    engine_process_bytes=670_000_000,  # measured: Python, torch, vLLM with a tiny model
    prefill_tokens=4096,  # vLLM's defaults on CPUs
    decode_rows=256,
)

HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        "cpu": _CPU,
        "A100": _A100_80,
        "A100-80": _A100_80,
        "A100-40": replace(
            _A100_80, name="A100-40", memory_bytes_per_second=1.555e12, memory_bytes=40 * 10**9
        ),
        "H100": _H100,
        "H200": replace(
            _H100, name="H200", memory_bytes_per_second=4.8e12, memory_bytes=141 * 10**9
        ),
        "B200": replace(
            _H100,
            name="B200",
            flops_per_second=2250e12,
            flops_per_second_32=75e12,
            memory_bytes_per_second=8.0e12,
            memory_bytes=180 * 10**9,
            node_link=replace(_H100.node_link, bytes_per_second=900e9),
        ),
        "L40S": replace(
            _A100_80,
            name="L40S",
            flops_per_second=362e12,
            flops_per_second_32=91.6e12,
            memory_bytes_per_second=0.864e12,
            memory_bytes=48 * 10**9,
            # PCIe 4.0 x16, 32 GB/s one way, of which some 0.75 remain through the host.
            node_link=Link(
                bytes_per_second=24e9, latency_seconds=36e-6, latency_seconds_per_rank=5.3e-6
            ),
            network=replace(_INFINIBAND, bytes_per_second=200 * GIGABIT),
            host_link=_PCIE4,
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
