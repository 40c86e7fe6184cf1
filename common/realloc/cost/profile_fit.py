"""From a profile to hardware: efficiencies and links fitted, ratios kept, errors reported."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import InvalidInput
from realloc.cost.hardware import Hardware, Link, hardware_of
from realloc.cost.least_squares import least_squares
from realloc.cost.links import Group, all_reduce_seconds
from realloc.cost.profile import (
    LinkKind,
    LinkSample,
    Profile,
    Sample,
    estimated_seconds,
    sample_shape,
)
from realloc.cost.ratios import Ratio, RatioTable, Work

Floats = NDArray[np.float64]

_TRAINER = ("matrix", "memory", "forward_launch_seconds", "backward_launch_seconds", "head_seconds")
_FITTED = {
    Work.LAYER_FORWARD: _TRAINER,
    Work.LAYER_BACKWARD: _TRAINER,
    Work.HEAD_FORWARD: _TRAINER,
    Work.HEAD_TRAIN: _TRAINER,
    Work.STEP: ("step_seconds",),
    Work.INFERENCE_FRAME: ("frame_seconds", "frame_row_seconds"),
    Work.TRAIN_FRAME: ("frame_seconds", "frame_row_seconds", "target_token_seconds"),
    Work.PREFILL: ("decode_step_seconds", "prefill_row_seconds"),
    Work.DECODE: ("decode_layer_seconds", "decode_step_seconds", "decode_row_seconds"),
}
"""Efficiencies that each kind of work tells of."""
_PRIOR_DEVIATIONS = {"matrix": 0.5, "memory": 0.2}
_OTHER_DEVIATION = 1.5
"""How far, in logarithms, an efficiency may easily lie from its preset. A profile has the say,
but it tells products and memory traffic of a layer apart only by their growth with its size."""
_SAMPLE_DEVIATION = 0.2
_ROUNDS = 3
_LEAST_RESIDUAL = 0.05
_LEAST_SECONDS = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFit:
    """How one kind of work is met; mean absolute errors in per cent."""

    work: Work
    num_samples: int
    preset_ratio: float
    """Geometric mean of the preset's estimates over what was measured."""
    roofline_error: float
    """Of the fitted efficiencies alone: what sizes far from all measured ones can expect."""
    interpolation_error: float
    """Of a sample that is left out, predicted from the others; 0 for a single one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFit:
    """Hardware made from a profile, and how well it meets it."""

    hardware: Hardware
    works: tuple[WorkFit, ...]


def fit_profile(profile: Profile) -> ProfileFit:
    """The preset's peaks with this device's efficiencies, links and ratios.

    Raises:
        InvalidInput: the profile names an unknown preset.
    """
    preset = hardware_of(profile.preset)
    hardware = _with_links(profile, preset)
    hardware = _with_efficiencies(profile, hardware)
    works = [work for work in Work if any(s.work is work for s in profile.samples)]
    return ProfileFit(
        hardware=replace(hardware, ratios=_ratios(profile, profile.samples, hardware)),
        works=tuple(_work_fit(profile, work, hardware, preset) for work in works),
    )


def profiled_hardware(device_kind: str, profile: Profile) -> Hardware:
    """The hardware of a device kind, as a profile of such a device has it.

    Raises:
        InvalidInput: an unknown kind, or a profile of another one.
    """
    if hardware_of(profile.preset) is not hardware_of(device_kind):
        raise InvalidInput.at(
            "profile", f"is of {profile.preset} and the cluster has {device_kind}"
        )
    return fit_profile(profile).hardware


def _with_efficiencies(profile: Profile, preset: Hardware) -> Hardware:
    names = sorted({name for sample in profile.samples for name in _FITTED[sample.work]})
    if not names:
        return preset
    start: Floats = np.log([getattr(preset.efficiency, name) for name in names])
    deviations = np.array([_PRIOR_DEVIATIONS.get(name, _OTHER_DEVIATION) for name in names])
    measured = np.log([max(s.seconds, _LEAST_SECONDS) for s in profile.samples])

    def hardware(logs: Floats) -> Hardware:
        values = dict(zip(names, map(float, np.exp(logs)), strict=True))
        return replace(preset, efficiency=replace(preset.efficiency, **values))

    def misses(logs: Floats) -> Floats:
        made = hardware(logs)
        found: Floats = (
            np.log([estimated_seconds(s, profile, made) for s in profile.samples]) - measured
        )
        return found

    logs, weights = start, np.ones(len(measured))
    for _ in range(_ROUNDS):
        scale = np.sqrt(weights) / _SAMPLE_DEVIATION

        def residuals(logs: Floats, scale: Floats = scale) -> Floats:
            prior = (logs - start) / deviations
            return np.concatenate([misses(logs) * scale, prior])

        logs = least_squares(residuals, logs, steps=12)
        weights = _LEAST_RESIDUAL / np.maximum(np.abs(misses(logs)), _LEAST_RESIDUAL)
    return hardware(logs)


def _ratios(profile: Profile, samples: Sequence[Sample], hardware: Hardware) -> RatioTable:
    ratios = []
    for sample in samples:
        shape = sample_shape(sample, profile)
        if shape is not None:
            measured = max(sample.seconds, _LEAST_SECONDS)
            ratios.append(
                Ratio(
                    work=sample.work,
                    shape=shape,
                    rows=sample.rows,
                    length=sample.length,
                    ratio=measured / estimated_seconds(sample, profile, hardware),
                )
            )
    return RatioTable(ratios)


def _work_fit(profile: Profile, work: Work, hardware: Hardware, preset: Hardware) -> WorkFit:
    samples = [sample for sample in profile.samples if sample.work is work]
    left_out = []
    for index, sample in enumerate(samples):
        others = samples[:index] + samples[index + 1 :]
        kin = [o for o in others if sample_shape(o, profile) == sample_shape(sample, profile)]
        if kin:
            table = _ratios(profile, kin, hardware)
            left_out.append(_error(sample, profile, replace(hardware, ratios=table)))
    logs = [
        math.log(estimated_seconds(s, profile, preset) / max(s.seconds, _LEAST_SECONDS))
        for s in samples
    ]
    return WorkFit(
        work=work,
        num_samples=len(samples),
        preset_ratio=math.exp(float(np.mean(logs))),
        roofline_error=float(np.mean([_error(s, profile, hardware) for s in samples])),
        interpolation_error=float(np.mean(left_out)) if left_out else 0.0,
    )


def _error(sample: Sample, profile: Profile, hardware: Hardware) -> float:
    measured = max(sample.seconds, _LEAST_SECONDS)
    return 100.0 * abs(estimated_seconds(sample, profile, hardware) / measured - 1.0)


def _with_links(profile: Profile, preset: Hardware) -> Hardware:
    copies = [sample for sample in profile.links if sample.kind is LinkKind.HOST_COPY]
    between = [sample for sample in profile.links if sample.kind is not LinkKind.HOST_COPY]
    hardware = preset
    if copies:
        link = _fit_link(copies, preset.host_link, lambda link: replace(preset, host_link=link))
        hardware = replace(hardware, host_link=link)
    if between:
        link = _fit_link(between, preset.node_link, lambda link: replace(preset, node_link=link))
        hardware = replace(hardware, node_link=link)
    return hardware


def _fit_link(
    samples: Sequence[LinkSample], start: Link, having: Callable[[Link], Hardware]
) -> Link:
    """Latencies and bandwidth that meet the samples best, in logarithms."""
    measured = np.log([sample.seconds for sample in samples])
    floor = _LEAST_SECONDS  # a logarithm of nothing

    def link(logs: Floats) -> Link:
        bandwidth, latency, per_rank = map(float, np.exp(logs))
        return Link(
            bytes_per_second=bandwidth, latency_seconds=latency, latency_seconds_per_rank=per_rank
        )

    def misses(logs: Floats) -> Floats:
        hardware = having(link(logs))
        found = [_link_seconds(sample, hardware) for sample in samples]
        prior = (logs - first) / 10.0  # what the samples do not tell stays near the preset
        return np.concatenate([np.log(found) - measured, prior])

    first: Floats = np.log(
        [
            start.bytes_per_second,
            max(start.latency_seconds, floor),
            max(start.latency_seconds_per_rank, floor),
        ]
    )
    return link(least_squares(misses, first, steps=20))


def _link_seconds(sample: LinkSample, hardware: Hardware) -> float:
    if sample.kind is LinkKind.ALL_REDUCE:
        return all_reduce_seconds(Group(size=sample.ranks), sample.size_bytes, hardware)
    link = hardware.host_link if sample.kind is LinkKind.HOST_COPY else hardware.node_link
    return link.latency_seconds + sample.size_bytes / link.bytes_per_second
