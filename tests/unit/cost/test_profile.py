"""Profiles: written and read, and the hardware that is made of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import Workload, estimate_call
from realloc.cost.hardware import Hardware, hardware_of
from realloc.cost.layers import Execution, Tokens, layer_passes
from realloc.cost.links import Group, all_reduce_seconds
from realloc.cost.profile import (
    LinkKind,
    LinkSample,
    Profile,
    Sample,
    estimated_seconds,
    local_architecture,
    sample_shape,
)
from realloc.cost.profile_file import (
    profile_from_json,
    profile_to_json,
    read_profile,
    write_profile,
)
from realloc.cost.profile_fit import fit_profile, profiled_hardware
from realloc.cost.ratios import Work
from realloc.dataflow.graph import CallKind
from tests.unit.cost.models import LLAMA_8B

H100 = hardware_of("H100")
SLOW = replace(
    H100,
    efficiency=replace(
        H100.efficiency,
        matrix=0.4,
        memory=0.7,
        forward_launch_seconds=1e-3,
        decode_step_seconds=4e-3,
        prefill_row_seconds=1e-3,
        frame_row_seconds=1e-4,
    ),
    node_link=replace(
        H100.node_link,
        bytes_per_second=90e9,
        latency_seconds=5e-5,
        latency_seconds_per_rank=1e-5,
    ),
)
"""What the synthetic profile was measured on."""


def profiled(hardware: Hardware, *, noise: float = 1.0) -> Profile:
    """A profile as that hardware would give it; work on four ranks longer by a factor."""
    empty = Profile(
        device="synthetic",
        preset="H100",
        date="2026-01-02T03:04:05+00:00",
        devices_at_once=1,
        versions={"torch": "1"},
        models={"llama": LLAMA_8B},
        samples=(),
    )
    usual = ((1, 512), (4, 512), (16, 512), (4, 2048))
    samples = []
    for work in Work:
        for tensor in (1,) if work is Work.STEP else (1, 4):
            for rows, length in ((10**7, 1), (10**9, 1)) if work is Work.STEP else usual:
                sample = Sample(
                    work=work,
                    model="llama",
                    tensor=tensor,
                    element_bytes=2,
                    rows=rows,
                    length=length,
                    seconds=1.0,
                )
                seconds = estimated_seconds(sample, empty, hardware)
                seconds *= noise if tensor > 1 else 1.0
                samples.append(replace(sample, seconds=seconds))
    links = [
        LinkSample(
            kind=LinkKind.ALL_REDUCE,
            ranks=ranks,
            size_bytes=size,
            seconds=all_reduce_seconds(Group(size=ranks), size, hardware),
        )
        for ranks in (2, 4, 8)
        for size in (1e4, 1e6, 1e8)
    ]
    return replace(empty, samples=tuple(samples), links=tuple(links))


def test_efficiencies_come_back() -> None:
    """A profile of slower hardware, fitted from the preset, predicts what was measured there."""
    fit = fit_profile(profiled(SLOW))
    for work in fit.works:
        assert work.roofline_error < 6.0, work
    assert fit.hardware.efficiency.matrix == pytest.approx(0.4, rel=0.1)
    assert fit.hardware.node_link.bytes_per_second == pytest.approx(90e9, rel=0.02)
    assert fit.hardware.node_link.latency_seconds == pytest.approx(5e-5, rel=0.05)


def test_what_was_measured_is_met_whatever_the_roofline_says() -> None:
    """Samples 1.5 times as long as the other half's roofline are predicted to a thousandth."""
    profile = profiled(SLOW, noise=1.5)
    hardware = fit_profile(profile).hardware
    for sample in profile.samples:
        if sample_shape(sample, profile) is not None:
            again = estimated_seconds(sample, profile, hardware)
            assert again == pytest.approx(sample.seconds, rel=1e-3)


def test_sizes_beyond_the_samples_grow_by_flops() -> None:
    """A hundred times the rows of the largest sample take about a hundred times as long."""
    hardware = fit_profile(profiled(SLOW, noise=1.5)).hardware
    execution = Execution(element_bytes=2)
    known = layer_passes(LLAMA_8B, Tokens(rows=16, length=512), execution, hardware).forward
    far = layer_passes(LLAMA_8B, Tokens(rows=1600, length=512), execution, hardware).forward
    assert far / known == pytest.approx(100, rel=0.15)


def test_a_tensor_rank_is_predicted_by_its_local_work() -> None:
    """The ratio measured on a quarter of the model is found for the model on four ranks."""
    hardware = fit_profile(profiled(SLOW, noise=1.5)).hardware
    tokens = Tokens(rows=4, length=512)
    alone = layer_passes(local_architecture(LLAMA_8B, 4), tokens, Execution(), hardware)
    shared = layer_passes(LLAMA_8B, tokens, Execution(tensor=4), hardware)
    hidden = 2 * tokens.count * LLAMA_8B.hidden_size
    reduced = 2 * all_reduce_seconds(Group(size=4), hidden, hardware)
    assert shared.forward == pytest.approx(alone.forward + reduced)


def test_calls_follow_the_profile() -> None:
    """A train call on hardware made from a slower device's profile takes what it takes there."""
    work = Workload(num_rows=64, prompt_tokens=512, response_tokens=0, element_bytes=2)
    made = fit_profile(profiled(SLOW)).hardware

    def seconds(hardware: Hardware) -> float:
        strategy = ParallelStrategy(tensor=4)
        return estimate_call(CallKind.TRAIN, LLAMA_8B, strategy, work, hardware).seconds

    assert seconds(made) > 1.3 * seconds(H100)
    assert seconds(made) == pytest.approx(seconds(SLOW), rel=0.05)


def test_the_file_gives_the_profile_back(tmp_path: Path) -> None:
    """Written and read, a profile is equal, but for digits of seconds beyond the fifth."""
    profile = profiled(SLOW)
    write_profile(profile, tmp_path / "deep" / "profile.json")
    found = read_profile(tmp_path / "deep" / "profile.json")
    assert replace(found, samples=(), links=()) == replace(profile, samples=(), links=())
    for mine, theirs in zip(profile.samples, found.samples, strict=True):
        assert replace(theirs, seconds=mine.seconds) == mine
        assert theirs.seconds == pytest.approx(mine.seconds, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.update(format=7), "format 7"),
        (lambda plain: plain.pop("samples"), "samples"),
        (lambda plain: plain["samples"][0].update(work="sleep"), "sleep"),
        (lambda plain: plain["samples"][0].update(seconds=-1), "seconds are -1"),
        (lambda plain: plain.update(models=[]), "is no profile"),
    ],
)
def test_broken_files_are_refused(change, message) -> None:
    """Another format, a missing part or a wrong value is one clear error."""
    plain = json.loads(profile_to_json(profiled(SLOW)))
    change(plain)
    with pytest.raises(InvalidInput, match=message):
        profile_from_json(json.dumps(plain))


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(InvalidInput, match=r"nowhere\.json"):
        read_profile(tmp_path / "nowhere.json")
    with pytest.raises(InvalidInput, match="is not JSON"):
        profile_from_json("{")


def test_a_kind_of_device_takes_its_own_profile_only() -> None:
    """The profile's hardware, and a refusal for another kind."""
    assert profiled_hardware("H100", profiled(SLOW)).efficiency.matrix == pytest.approx(
        0.4, rel=0.1
    )
    with pytest.raises(InvalidInput, match="is of H100 and the cluster has B200"):
        profiled_hardware("B200", profiled(SLOW))
