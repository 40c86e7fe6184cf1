"""Measure the device at hand through the real trainer and vLLM: a profile for the cost model.

    python -m tools.profile_hardware MODEL_FOLDER --output run/profile.json

MODEL_FOLDER holds a Hugging Face config.json; weights are random. The profile is a table of
seconds (docs/cost-model.md) that `realloc plan --profile` and the plan-search service use. One
process per device measures, all at once, as they will work.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from realloc.core.errors import InvalidInput, ReallocError
from realloc.core.model import ModelArchitecture
from realloc.cost.hardware import hardware_of
from realloc.cost.profile import LinkSample, Profile, Sample
from realloc.cost.profile_file import read_profile, write_profile
from realloc.cost.profile_fit import ProfileFit, fit_profile

_VERSIONS = ("torch", "megatron-core", "vllm", "numpy")
_PRESETS = {"H100": "H100", "H200": "H200", "A100": "A100-80", "B200": "B200", "L40S": "L40S"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A process among those that measure."""

    rank: int
    num_ranks: int
    host: str
    port: int
    """Where the store of their rendezvous is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one process measured."""

    samples: tuple[Sample, ...]
    links: tuple[LinkSample, ...] = ()


def main() -> int:
    arguments = _parser().parse_args()
    started = time.monotonic()
    try:
        wanted = _wanted(arguments)
        profile = _kept(arguments.output, wanted) if arguments.reuse else None
        if profile is None:
            profile = _measure(wanted, arguments)
            write_profile(profile, arguments.output)
            print(f"measured in {time.monotonic() - started:.0f} s: {arguments.output}")
        else:
            print(f"measured {profile.date} on this machine with these versions: kept")
        print(fit_text(fit_profile(profile)))
    except ReallocError as error:
        print(f"profile_hardware: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder with the model's config.json")
    parser.add_argument("--output", type=Path, default=Path("run/profile.json"))
    parser.add_argument("--reuse", action="store_true", help="keep an output that still holds")
    parser.add_argument("--devices", type=int, default=0, help="at once; default: GPUs, or cores")
    parser.add_argument("--tensor", type=int, nargs="+", default=[1, 2], help="tensor degrees")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--lengths", type=int, nargs="+", default=[12, 48])
    parser.add_argument("--max-tokens", type=int, default=16_384, help="of a packed batch")
    parser.add_argument("--bytes", type=int, nargs="+", default=[4], choices=(2, 4))
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure, roughly")
    parser.add_argument("--preset", default="", help="hardware whose peaks the device has")
    parser.add_argument("--no-generation", action="store_true", help="the trainer's half only")
    return parser


def _wanted(arguments: argparse.Namespace) -> Profile:
    """The profile to be, without samples."""
    import torch

    path = arguments.model / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput.at(str(path), f"cannot be read: {error}") from error
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else _processor()
    known = [preset for name, preset in _PRESETS.items() if name in device]
    cores = len(os.sched_getaffinity(0))
    return Profile(
        device=device,
        preset=arguments.preset or (known[0] if cuda and known else "A100-80" if cuda else "cpu"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        devices_at_once=arguments.devices or (torch.cuda.device_count() if cuda else cores),
        versions={name: found for name in _VERSIONS if (found := _version(name))},
        models={arguments.model.name: ModelArchitecture.from_hf_config(config)},
        samples=(),
    )


def _kept(path: Path, wanted: Profile) -> Profile | None:
    """The profile of an earlier run, where device, versions and models are those of now."""
    try:
        found = read_profile(path)
    except InvalidInput:
        return None
    same = replace(found, date=wanted.date, samples=(), links=()) == wanted
    return found if same else None


def _measure(wanted: Profile, arguments: argparse.Namespace) -> Profile:
    """Run the processes and gather what they saw."""
    ((name, architecture),) = wanted.models.items()
    generates = not arguments.no_generation and importlib.util.find_spec("vllm") is not None
    sizes = tuple(
        (rows, length)
        for length in arguments.lengths
        for rows in arguments.rows
        if rows * length <= arguments.max_tokens
    )
    shared = {
        "name": name,
        "architecture": architecture,
        "tensor_degrees": tuple(arguments.tensor),
        "sizes": sizes,
        "seconds": arguments.seconds / (2 if generates else 1),
    }
    trainer = shared | {"element_bytes": tuple(arguments.bytes)}
    seen = _on_every_device(train_worker, trainer, wanted.devices_at_once)
    if generates:
        text = (arguments.model / "config.json").read_text()
        at_once = hardware_of(wanted.preset).prefill_tokens
        engine = shared | {
            "hf_config": text,
            "element_bytes": min(arguments.bytes),
            "sizes": tuple(size for size in sizes if size[0] * size[1] <= at_once),
        }
        more = _on_every_device(generate_worker, engine, wanted.devices_at_once)
        seen = replace(seen, samples=seen.samples + more.samples)
    return replace(wanted, samples=seen.samples, links=seen.links)


def _on_every_device(
    worker: Callable[[dict[str, Any], Place], Seen], task: Mapping[str, Any], num_devices: int
) -> Seen:
    """One process per device, all at once; samples are means over them."""
    from realloc.transfer.rendezvous import TransferStore

    store = TransferStore("127.0.0.1")
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(num_devices, spawn) as pool:
            places = [
                Place(rank=rank, num_ranks=num_devices, host=store.host, port=store.port)
                for rank in range(num_devices)
            ]
            seen = list(pool.map(worker, [dict(task)] * num_devices, places))
    finally:
        store.close()
    return Seen(
        samples=_means([sample for one in seen for sample in one.samples]),
        links=tuple(link for one in seen for link in one.links),
    )


def _means(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """One sample for each piece of work, with the mean seconds of the processes."""
    seconds: dict[Sample, list[float]] = {}
    for sample in samples:
        seconds.setdefault(replace(sample, seconds=0.0), []).append(sample.seconds)
    return tuple(replace(sample, seconds=fmean(found)) for sample, found in seconds.items())


def train_worker(task: dict[str, Any], place: Place) -> Seen:
    """Runs in a process of its own: the trainer, and links to its peers."""
    _own_device(place)
    from services.trainer.link_profiling import profile_host_copies, profile_links
    from services.trainer.profiling import TrainerTask, profile_trainer

    samples = profile_trainer(TrainerTask(**task), _say(place))
    links = profile_host_copies()
    if place.num_ranks > 1:
        links += profile_links(place.rank, place.num_ranks, place.host, place.port)
    return Seen(samples=tuple(samples), links=tuple(links))


def generate_worker(task: dict[str, Any], place: Place) -> Seen:
    """Runs in a process of its own: a vLLM engine."""
    from services.generation.vllm_engine import prepare_environment

    prepare_environment()
    _own_device(place)
    from services.generation.profiling import EngineTask, profile_engine

    return Seen(samples=tuple(profile_engine(EngineTask(**task), _say(place))))


def _own_device(place: Place) -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")  # Megatron-core's, of what is not installed
    if torch.cuda.is_available():
        torch.cuda.set_device(place.rank)
    else:
        torch.set_num_threads(1)


def _say(place: Place) -> Callable[[str], None]:
    """Progress, from the first process only."""
    return lambda text: print(f"  {text}", flush=True) if place.rank == 0 else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def fit_text(fit: ProfileFit) -> str:
    """How well the cost model meets the profile, as a small table."""
    lines = ["                           preset /   fitted roofline   left out, from"]
    lines += ["work             samples   measured       misses by       the others"]
    lines += [
        f"{work.work.value:16} {work.num_samples:7} {work.preset_ratio:10.2f}"
        f" {work.roofline_error:13.1f} % {work.interpolation_error:14.1f} %"
        for work in fit.works
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
