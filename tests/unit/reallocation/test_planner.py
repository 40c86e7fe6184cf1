"""Plans executed by the numpy reference: right weights, each byte once, from anywhere."""

from dataclasses import replace

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.model import Head
from realloc.core.transfer import Endpoint
from realloc.reallocation.families import KNOWN_FAMILIES
from realloc.reallocation.limits import Buffers, TransferLimits
from realloc.reallocation.planner import plan_transfer
from tests.unit.reallocation.cases import (
    MOE_FAMILIES,
    Case,
    architecture,
    empty,
    endpoints,
    in_one_memory,
    layout,
    run,
)

LAYOUTS = [
    "megatron:d1t2p1",
    "megatron:d2t1p2",
    "megatron:d1t3p2v2",
    "megatron:d1t12p1",
    "megatron:d1t6p1",
    "vllm:d2t1p1",
    "vllm:d1t2p2",
    "huggingface:d1t1p1",
    "fsdp:d5t1p1",
]
EXPERT_LAYOUTS = [
    "megatron:d4t1p1e4",
    "megatron:d2t2p2v2e2",
    "megatron:d1t3p1",
    "vllm:d2t2p1e2",
    "vllm:d1t2p2",
    "fsdp:d3t1p1",
]


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("destination", LAYOUTS)
@pytest.mark.parametrize("first_device", [0, 2, 20], ids=["equal", "overlapping", "disjoint"])
def test_any_layout_to_any(source, destination, first_device):
    """Every destination parameter gets the bits that its table says, whatever the meshes."""
    run(
        Case(
            model=architecture(),
            source=layout(source),
            destination=layout(destination, first_device),
        )
    )


@pytest.mark.parametrize("family", MOE_FAMILIES)
@pytest.mark.parametrize("source", EXPERT_LAYOUTS)
@pytest.mark.parametrize("destination", EXPERT_LAYOUTS)
def test_experts_from_any_layout_to_any(family, source, destination):
    """Experts cut by expert, tensor and pipeline degrees become experts cut otherwise."""
    run(Case(model=architecture(family), source=layout(source), destination=layout(destination, 3)))


@pytest.mark.parametrize("family", sorted(KNOWN_FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", list(Head))
def test_families(family, tied, head):
    """Every family moves between the layouts, with either head, tied or not."""
    model = architecture(family, tied_embeddings=tied).with_head(head)
    megatron = "megatron:d2t2p2e2" if family in MOE_FAMILIES else "megatron:d1t2p2"
    run(Case(model=model, source=layout(megatron), destination=layout("vllm:d2t2p1")))
    run(Case(model=model, source=layout("vllm:d2t2p2"), destination=layout("megatron:d1t1p4")))


def test_experts_in_uneven_groups():
    """Expert-parallel vLLM ranks of different numbers of experts get theirs whole."""
    model = architecture("qwen3_moe", num_experts=5)
    run(
        Case(
            model=model,
            source=layout("megatron:d1t3p1"),
            destination=layout("vllm:d2t2p1e2", 3),
        )
    )


def test_one_process_may_hold_both_sides():
    """Trainer and generator in one process: what stays is a message to itself."""
    case = Case(
        model=architecture(),
        source=layout("megatron:d1t2p1"),
        destination=layout("vllm:d2t1p1"),
        roles=("both", "both"),
    )
    plan = run(case)
    assert len(plan.endpoints) == 2
    assert plan.traffic.cross_process_bytes == plan.traffic.cross_device_bytes


def test_only_what_changed_moves():
    """A plan for some tensors writes those and leaves the others as they are."""
    only = frozenset(
        {
            "model.norm.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.2.self_attn.k_proj.weight",
            "model.layers.2.mlp.down_proj.weight",
        }
    )
    case = Case(
        model=architecture(),
        source=layout("megatron:d1t2p2"),
        destination=layout("vllm:d1t2p1", 2),
        only=only,
    )
    names = {
        plan.canonical_tensors[number]
        for plan in (run(case),)
        for program in plan.programs
        for number in program.receives.blocks.canonical
    }
    assert names == only
    nothing = replace(case, only=frozenset())
    assert run(nothing).traffic.total_bytes == 0
    with pytest.raises(InvalidInput, match=r"model\.norm is unknown|model\.norm, which"):
        replace(case, only=frozenset({"model.norm"})).plan()


def test_equal_layouts_move_nothing():
    """From a layout to itself every byte stays on its device."""
    traffic = run(
        Case(
            model=architecture(),
            source=layout("megatron:d2t2p2"),
            destination=layout("megatron:d2t2p2"),
        )
    ).traffic
    assert traffic.cross_device_bytes == 0
    assert traffic.local_bytes == traffic.total_bytes


def test_padding_keeps_its_contents():
    """Rows of the padded vocabulary that stand for no token are never written."""
    case = Case(
        model=architecture(), source=layout("megatron:d1t2p1"), destination=layout("vllm:d1t2p1")
    )
    written = {}

    def allocate(of):
        sources, targets = (
            [empty(table) for table in of.tables(of.source)],
            [empty(table, value=7.0) for table in of.tables(of.destination)],
        )
        written.update(enumerate(targets))
        return sources, targets

    run(case, allocate)
    # 99 tokens in 128 rows over two ranks: the second holds 35 real rows of 64.
    assert (written[1]["lm_head.weight"][35:] == 7.0).all()
    assert (written[1]["lm_head.weight"][:35] != 7.0).all()


@pytest.mark.parametrize("ahead", [0, 13])
def test_shared_buffers_have_no_hazard(ahead):
    """Where both sides of a process share one memory, nothing is read after it is overwritten."""
    case = Case(
        model=architecture(),
        source=layout("megatron:d1t2p2"),
        destination=layout("megatron:d2t2p1", range(2, 6)),
        roles=("both", "both"),
        limits=TransferLimits(buffers=Buffers.SHARED),
    )
    plan = run(case, lambda of: in_one_memory(of, ahead))
    assert {int(r) for p in plan.programs for r in p.sends.round} <= {0, 2}


def test_shared_buffers_need_enough_staging():
    """A plan that cannot be free of hazards within its staging is refused, not made."""
    case = Case(
        model=architecture(),
        source=layout("megatron:d1t2p1"),
        destination=layout("vllm:d2t1p1"),
        limits=TransferLimits(buffers=Buffers.SHARED, staging_bytes=4096, max_operations=8),
    )
    with pytest.raises(InvalidInput, match="shared"):
        case.plan()


def test_wrong_inputs_name_what_is_wrong():
    """A layout that does not fit the model or its processes is refused with the reason."""
    model = architecture()

    def plan(source, destination, **changes):
        have, want = layout(source), layout(destination)
        settings = {
            "source_endpoints": endpoints(have, "a"),
            "destination_endpoints": endpoints(want, "b"),
            "dtype": "float32",
        }
        return plan_transfer(model, have, want, **(settings | changes))

    for source, reason in (
        ("megatron:d1t5p1", "num_attention_heads is 12"),
        ("megatron:d1t1p3", "number of layers is 4"),
        ("vllm:d1t12p1", "padded vocabulary is 128"),
        ("huggingface:d1t2p1", "data replicas only"),
        ("vllm:d1t1p5", "fewer than 5 stages"),
        ("vllm:d1t4p1", "6 KV heads and tp 4: none divides the other"),
    ):
        for wrong in ((source, "vllm:d1t1p1"), ("vllm:d1t1p1", source)):
            with pytest.raises(InvalidInput, match=rf"{source}@\S+: strategy: .*{reason}"):
                plan(*wrong)
    with pytest.raises(InvalidInput, match=r"source_endpoints.*names 1 processes"):
        plan(
            "megatron:d1t2p1",
            "vllm:d1t1p1",
            source_endpoints=[Endpoint(name="a", device=0, node=0)],
        )
    with pytest.raises(InvalidInput, match=r"destination_endpoints\[0\].*device 3"):
        plan(
            "megatron:d1t2p1",
            "vllm:d1t1p1",
            destination_endpoints=[Endpoint(name="b", device=3, node=0)],
        )
    with pytest.raises(InvalidInput, match="two devices"):
        plan(
            "megatron:d1t2p1",
            "vllm:d1t1p1",
            destination_endpoints=[Endpoint(name="a-1", device=0, node=0)],
        )
    with pytest.raises(InvalidInput, match="device 0 is said to be in node 0"):
        plan(
            "megatron:d1t2p1",
            "vllm:d1t1p1",
            destination_endpoints=[Endpoint(name="b", device=0, node=1)],
        )
    with pytest.raises(InvalidInput, match="int8"):
        plan("megatron:d1t2p1", "vllm:d1t1p1", dtype="int8")
