"""Estimated reallocations against the transfer planner's own bytes."""

import pytest

from realloc.core.layout import Layout, LayoutKind
from realloc.core.mesh import DeviceMesh
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Endpoint
from realloc.cost.hardware import hardware_of
from realloc.cost.links import network_bytes_per_second
from realloc.cost.memory import total_weight_bytes
from realloc.cost.moves import PlacedLayout, reallocation_matrix
from realloc.reallocation.planner import plan_transfer
from tests.unit.cost.models import LLAMA_8B

H100 = hardware_of("H100")
NUM_DEVICES = 32


def placed(text: str) -> PlacedLayout:
    """``d2t4p1@8``: a strategy on devices from a first one on."""
    strategy_text, first = text.split("@")
    strategy = ParallelStrategy.parse(strategy_text)
    mesh = DeviceMesh(first_device=int(first), num_devices=strategy.num_ranks)
    return PlacedLayout(mesh=mesh, strategy=strategy)


def planned_seconds(source: PlacedLayout, target: PlacedLayout) -> float:
    """Link-bound seconds of the transfer planner's plan."""
    layouts, endpoints = [], []
    for kind, place in ((LayoutKind.MEGATRON, source), (LayoutKind.VLLM, target)):
        devices = tuple(place.mesh.devices)
        layouts.append(Layout(kind=kind, strategy=place.strategy, devices=devices))
        endpoints.append(
            [Endpoint(name=f"{kind.value}-{d}", device=d, node=d // 8) for d in devices]
        )
    traffic = plan_transfer(
        LLAMA_8B,
        *layouts,
        source_endpoints=endpoints[0],
        destination_endpoints=endpoints[1],
        dtype="bfloat16",
    ).traffic
    busiest = max(traffic.busiest_send_bytes, traffic.busiest_receive_bytes)
    link = H100.node_link.bytes_per_second
    if not traffic.cross_node_bytes:
        return busiest / link
    share = network_bytes_per_second(H100) / H100.devices_per_node
    return max(traffic.inside_send_bytes / link, busiest / share)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("d1t8p1@0", "d4t2p1@0"),
        ("d2t4p1@0", "d8t1p1@0"),
        ("d1t8p2@0", "d8t2p1@0"),
        ("d1t8p1@0", "d4t2p1@8"),
        ("d2t4p2@0", "d8t1p1@0"),
        ("d1t4p4@0", "d16t1p1@0"),
        ("d1t8p2@16", "d32t1p1@0"),
    ],
)
def test_seconds_are_near_the_transfer_plans(source: str, target: str) -> None:
    """Within 20 % of what the planned transfer's busiest link takes."""
    layouts = [placed(source), placed(target)]
    total = total_weight_bytes(LLAMA_8B, 2)
    matrix = reallocation_matrix([0], layouts, total, NUM_DEVICES, H100, fixed_seconds=0.0)
    assert matrix[0, 1] == pytest.approx(planned_seconds(*layouts), rel=0.2)


def test_equal_parts_move_nothing() -> None:
    """Generation under training's strategy on its mesh costs the fixed part only."""
    layouts = [placed("d2t4p1@0"), placed("d2t4p1@0")]
    matrix = reallocation_matrix([0, 1], layouts, 16e9, NUM_DEVICES, H100, fixed_seconds=0.25)
    assert matrix.tolist() == [[0.0, 0.25], [0.25, 0.0]]
