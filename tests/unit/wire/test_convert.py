"""Dataclasses and messages: what goes in comes out, and what is wrong is named."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout, LayoutKind
from realloc.core.mesh import DeviceMesh
from realloc.core.model import Head, ModelArchitecture
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Blocks, Messages
from realloc.wire.convert import from_proto, to_proto


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """The shapes that no core noun has."""

    note: str | None
    layout: Layout | None
    metrics: Mapping[str, float]
    meshes: Mapping[str, DeviceMesh]
    timeout_seconds: float
    created: datetime
    updated_seconds: float
    kinds: tuple[LayoutKind, ...]
    payload: bytes
    kind_text: LayoutKind


EVERYTHING = Everything(
    note="",
    layout=None,
    metrics={"loss": 0.5, "kl": -1.0},
    meshes={"a": DeviceMesh(first_device=4, num_devices=2)},
    timeout_seconds=1.5,
    created=datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=UTC),
    updated_seconds=1795255614.25,
    kinds=(LayoutKind.VLLM, LayoutKind.FSDP),
    payload=b"\x00\xff",
    kind_text=LayoutKind.MEGATRON,
)

degrees = st.integers(1, 8)
parallel = st.builds(
    ParallelStrategy,
    data=degrees,
    tensor=degrees,
    pipeline=degrees,
    virtual_pipeline=degrees,
    expert=degrees,
    context=degrees,
)
layouts = st.builds(
    lambda kind, strategy, first: Layout(
        kind=kind,
        strategy=strategy,
        devices=tuple(range(first, first + strategy.num_ranks)),
    ),
    st.sampled_from(LayoutKind),
    parallel,
    st.integers(0, 1000),
)
numbers = st.floats(allow_nan=False)
plans = st.builds(
    ExecutionPlan,
    placements=st.lists(
        st.builds(
            CallPlacement,
            call=st.text(),
            mesh=st.builds(
                DeviceMesh,
                first_device=st.integers(0, 2**31 - 1),
                num_devices=st.integers(1, 2**31 - 1),
            ),
            strategy=parallel,
            predicted_seconds=numbers,
            predicted_peak_bytes=st.integers(0, 2**63 - 1),
        ),
        max_size=4,
    ).map(tuple),
    predicted_seconds=numbers,
    predicted_reallocation_seconds=numbers,
)


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def problems_of(message: Any, data_class: type[Any], path: str = "") -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        from_proto(message, data_class, path)
    return [str(problem) for problem in caught.value.problems]


@settings(max_examples=50, deadline=None)
@given(layout=layouts, plan=plans)
def test_nouns_survive_the_wire(
    messages: SimpleNamespace, layout: Layout, plan: ExecutionPlan
) -> None:
    """Any layout and any plan come back equal after serialization."""
    assert from_proto(over_the_wire(to_proto(layout, messages.Layout)), Layout) == layout
    sent = over_the_wire(to_proto(plan, messages.ExecutionPlan))
    assert from_proto(sent, ExecutionPlan) == plan


def test_an_architecture_survives_the_wire(messages: SimpleNamespace) -> None:
    """Pairs of texts and numbers travel as a map and come back as sorted pairs."""
    counts = {
        each.name: index
        for index, each in enumerate(fields(ModelArchitecture), start=1)
        if each.type is int
    }
    architecture = ModelArchitecture(
        **counts,
        family="llama",
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        rope_scaling=(("factor", 8.0), ("low_freq_factor", 1.0)),
        tied_embeddings=True,
        head=Head.VALUE,
    )
    sent = over_the_wire(to_proto(architecture, messages.ModelArchitecture))
    assert from_proto(sent, ModelArchitecture) == architecture


def test_every_other_shape_survives_the_wire(messages: SimpleNamespace) -> None:
    """Options, maps, durations, timestamps, repeated enums and bytes come back equal."""
    sent = over_the_wire(to_proto(EVERYTHING, messages.Everything))
    assert from_proto(sent, Everything) == EVERYTHING
    assert sent.HasField("note")
    assert not sent.HasField("layout")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 50))
def test_arrays_survive_the_wire(messages: SimpleNamespace, seed: int, size: int) -> None:
    """Struct-of-arrays nouns travel as little-endian bytes, with dtype and order kept."""
    rng = np.random.default_rng(seed)
    narrow = {"tensor", "canonical"}
    blocks = Blocks(
        **{
            each.name: rng.integers(
                0,
                2**31 if each.name in narrow else 2**62,
                size,
                np.int32 if each.name in narrow else np.int64,
            )
            for each in fields(Blocks)
        }
    )
    sent = Messages(
        peer=np.arange(2, dtype=np.int32),
        round=np.zeros(2, np.int32),
        first_block=np.array([0, 1, size], np.int64),
        first_cut=np.array([0, 0, 1], np.int64),
        cut=np.array([size], np.int64),
        blocks=blocks,
    )
    message = over_the_wire(to_proto(sent, messages.Messages))
    assert message.blocks.start == blocks.start.astype("<i8").tobytes()
    found = from_proto(message, Messages)
    for name in ("first_block", "first_cut", "cut"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sent, name))
    for each in fields(Blocks):
        expected, actual = getattr(blocks, each.name), getattr(found.blocks, each.name)
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype


def test_absent_fields_are_problems(messages: SimpleNamespace) -> None:
    """A message, enum or optional field that is not given is named, all at once."""
    assert problems_of(messages.Layout(), Layout, "target") == [
        "target.kind: is not given; one of huggingface, megatron, vllm, fsdp",
        "target.strategy: is not given",
    ]


def test_absent_fields_take_defaults(messages: SimpleNamespace) -> None:
    """Fields with presence and enums that are not given take the dataclass's default."""
    message = messages.ParallelStrategy(data=2, tensor=1, pipeline=1)
    assert from_proto(message, ParallelStrategy) == ParallelStrategy(data=2)
    architecture = messages.ModelArchitecture()
    assert from_proto(architecture, ModelArchitecture).head is Head.LM


def test_refusals_carry_the_whole_path(messages: SimpleNamespace) -> None:
    """What nested dataclasses refuse is listed for all of them, with indices and map keys."""
    good = CallPlacement(
        call="a",
        mesh=DeviceMesh(first_device=0, num_devices=1),
        strategy=ParallelStrategy(),
        predicted_seconds=1.0,
    )
    plan = ExecutionPlan(placements=(good, good, good), predicted_seconds=1.0)
    message = to_proto(plan, messages.ExecutionPlan)
    message.placements[0].strategy.data = -1
    message.placements[2].mesh.num_devices = 0
    assert problems_of(message, ExecutionPlan, "plan") == [
        "plan.placements[0].strategy.data: is -1 and must be at least 1",
        "plan.placements[2].mesh.num_devices: is 0 and must be at least 1",
    ]
    everything = to_proto(EVERYTHING, messages.Everything)
    everything.meshes["a"].first_device = -1
    everything.kinds[1] = 0
    everything.kind_text = "nonsense"
    everything.created.seconds = 10**15
    assert problems_of(everything, Everything) == [
        "meshes['a'].first_device: is -1; devices count from 0",
        "created: is 1000000000000000 s since 1970, beyond all calendars",
        "kinds[1]: is not given; one of huggingface, megatron, vllm, fsdp",
        "kind_text: is 'nonsense', which is not one of huggingface, megatron, vllm, fsdp",
    ]


def test_unknown_enum_numbers_are_problems(messages: SimpleNamespace) -> None:
    """A value of a newer version of the protocol is refused by its number."""
    message = to_proto(
        Layout(kind=LayoutKind.VLLM, strategy=ParallelStrategy(), devices=(0,)), messages.Layout
    )
    message.kind = 17
    assert problems_of(message, Layout) == [
        "kind: is 17, which is not one of huggingface, megatron, vllm, fsdp"
    ]


def test_cut_arrays_are_problems(messages: SimpleNamespace) -> None:
    """Bytes that are no whole number of elements are refused with both sizes."""
    message = messages.Messages(peer=b"12345")
    message.blocks.rows = b"123"
    assert problems_of(message, Messages) == [
        "peer: has 5 bytes, not a multiple of 4 (int32)",
        "blocks.rows: has 3 bytes, not a multiple of 8 (int64)",
    ]


def test_our_own_mistakes_are_type_errors(messages: SimpleNamespace) -> None:
    """A dataclass that does not fit its message is a bug, not an invalid input."""
    layout = Layout(kind=LayoutKind.VLLM, strategy=ParallelStrategy(), devices=(0,))
    with pytest.raises(TypeError, match="DeviceMesh has no field kind"):
        to_proto(layout, messages.DeviceMesh)
    with pytest.raises(TypeError, match="DeviceMesh has no field kind"):
        from_proto(messages.DeviceMesh(), Layout)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_no_message_crashes_the_reader(messages: SimpleNamespace, data: bytes) -> None:
    """Whatever parses as a message is read or refused as InvalidInput, nothing else."""
    for name, data_class in (("ExecutionPlan", ExecutionPlan), ("Everything", Everything)):
        try:
            message = getattr(messages, name).FromString(data)
        except Exception:
            continue
        try:
            from_proto(message, data_class)
        except InvalidInput:
            continue
