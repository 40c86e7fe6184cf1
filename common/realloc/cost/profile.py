"""Profiles: what was measured on a device, and the hardware that they make of it.

A profile is a table of samples, written as JSON with the device, versions and date. Hardware is
made from it in two steps: the few efficiencies of a preset are fitted to all samples, so that
models and sizes that nobody measured are predicted by the same roofline; then each sample's
ratio to its estimate is kept (`realloc.cost.ratios`), so that what was measured is met.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from realloc.core.model import ModelArchitecture
from realloc.cost.calls import frame_seconds
from realloc.cost.generation import Replica, engine_shape, prefill_seconds, step_seconds
from realloc.cost.hardware import Hardware
from realloc.cost.layers import (
    Execution,
    Tokens,
    head_passes,
    head_shape,
    layer_passes,
    layer_shape,
)
from realloc.cost.ratios import Work
from realloc.cost.training import update_seconds


class LinkKind(Enum):
    """What moved bytes."""

    MESSAGE = "message"
    """From one device to another; the node's link."""
    ALL_REDUCE = "all_reduce"
    HOST_COPY = "host_copy"
    """From a device to the host's memory or back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timed piece of work."""

    work: Work
    model: str
    """Key of the profile's models."""
    tensor: int
    """Degree whose local work it is."""
    element_bytes: int
    rows: float
    length: float
    seconds: float


def local_architecture(architecture: ModelArchitecture, tensor: int) -> ModelArchitecture:
    """The model that does on one device what a tensor rank does, without its collectives.

    Raises:
        InvalidInput: heads or widths do not divide.
    """
    return replace(
        architecture,
        num_attention_heads=architecture.num_attention_heads // tensor,
        num_key_value_heads=max(1, architecture.num_key_value_heads // tensor),
        intermediate_size=architecture.intermediate_size // tensor,
        expert_intermediate_size=architecture.expert_intermediate_size // tensor,
        vocab_size=-(-architecture.vocab_size // tensor),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSample:
    """One timed collective, message or copy."""

    kind: LinkKind
    ranks: int
    size_bytes: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything that was measured on one kind of device."""

    device: str
    """As the system names it."""
    preset: str
    """Hardware whose peaks it has: a key of `realloc.cost.hardware.HARDWARE`."""
    date: str
    """ISO 8601, UTC."""
    devices_at_once: int
    """Processes that measured beside each other on one machine."""
    versions: Mapping[str, str]
    models: Mapping[str, ModelArchitecture]
    samples: tuple[Sample, ...]
    links: tuple[LinkSample, ...] = ()


def estimated_seconds(sample: Sample, profile: Profile, hardware: Hardware) -> float:
    """What some hardware says of a sample."""
    model = local_architecture(profile.models[sample.model], sample.tensor)
    tokens = Tokens(rows=sample.rows, length=sample.length)
    execution = Execution(element_bytes=sample.element_bytes)
    match sample.work:
        case Work.LAYER_FORWARD:
            return layer_passes(model, tokens, execution, hardware).forward
        case Work.LAYER_BACKWARD:
            return layer_passes(model, tokens, execution, hardware).backward
        case Work.HEAD_FORWARD:
            return head_passes(model, tokens, execution, hardware).forward
        case Work.HEAD_TRAIN:
            passes = head_passes(model, tokens, execution, hardware)
            return passes.forward + passes.backward
        case Work.STEP:
            return update_seconds(sample.rows, sample.element_bytes, hardware)
        case Work.INFERENCE_FRAME:
            return frame_seconds(1, sample.rows, hardware)
        case Work.TRAIN_FRAME:
            return frame_seconds(1, sample.rows, hardware, target_tokens=sample.length)
    replica = Replica(
        architecture=model, tensor=1, element_bytes=sample.element_bytes, hardware=hardware
    )
    if sample.work is Work.PREFILL:
        return prefill_seconds(replica, sample.rows, sample.length)
    return step_seconds(replica, sample.rows, sample.length)


def sample_shape(sample: Sample, profile: Profile) -> Hashable:
    """The key under which estimates look for the sample's ratio; None where they do not."""
    model = local_architecture(profile.models[sample.model], sample.tensor)
    execution = Execution(element_bytes=sample.element_bytes)
    match sample.work:
        case Work.LAYER_FORWARD | Work.LAYER_BACKWARD:
            return layer_shape(model, execution)
        case Work.HEAD_FORWARD | Work.HEAD_TRAIN:
            return head_shape(model, execution)
        case Work.STEP:
            return sample.element_bytes
        case Work.PREFILL | Work.DECODE:
            return engine_shape(model, execution)
    return None
