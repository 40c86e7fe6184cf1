"""Layouts: which process holds which part of a model."""

import re
from dataclasses import dataclass
from enum import Enum

from realloc.core.errors import InvalidInput
from realloc.core.strategy import ParallelStrategy


class LayoutKind(Enum):
    """Whose rules decide how a rank stores its parameters."""

    HUGGINGFACE = "huggingface"
    MEGATRON = "megatron"
    VLLM = "vllm"
    FSDP = "fsdp"


_FORM = re.compile(r"(?:(?P<kind>[a-z]+):)?(?P<strategy>[a-z0-9]+)(?:@(?P<devices>[0-9,-]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model spread over devices by the rules of one engine.

    Rank ``r`` of ``strategy`` lives on ``devices[r]``.
    """

    kind: LayoutKind
    strategy: ParallelStrategy
    devices: tuple[int, ...]
    """Global device ids in rank order, one per rank."""

    def __post_init__(self) -> None:
        if len(self.devices) != self.strategy.num_ranks:
            raise InvalidInput.at(
                "devices",
                f"has {len(self.devices)} devices and {self.strategy} needs "
                f"{self.strategy.num_ranks}",
            )
        if len(set(self.devices)) != len(self.devices):
            raise InvalidInput.at("devices", "names a device twice")

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.strategy}@{','.join(map(str, self.devices))}"

    @property
    def short(self) -> str:
        """The same text with devices as ranges, for people: ``megatron:d2t4p1@0-7``."""
        runs: list[tuple[int, int]] = []
        for device in self.devices:
            if runs and runs[-1][1] == device - 1:
                runs[-1] = (runs[-1][0], device)
            else:
                runs.append((device, device))
        devices = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
        return f"{self.kind.value}:{self.strategy}@{devices}"

    @staticmethod
    def parse(text: str, kind: LayoutKind = LayoutKind.MEGATRON) -> "Layout":
        """Read ``vllm:d2t1p1@0-1``; kind and devices (0, 1, … if not given) may be left out.

        Args:
            kind: the kind where the text names none.

        Raises:
            InvalidInput: not of this form, or the devices do not fit the strategy.
        """
        match = _FORM.fullmatch(text)
        known = {each.value: each for each in LayoutKind}
        if match is None:
            raise InvalidInput.at("layout", f"{text!r} is not of the form megatron:d2t4p1@0-7")
        if match["kind"] and match["kind"] not in known:
            raise InvalidInput.at(
                "layout", f"{match['kind']!r} is none of {', '.join(sorted(known))}"
            )
        strategy = ParallelStrategy.parse(match["strategy"])
        devices = tuple(range(strategy.num_ranks))
        if match["devices"]:
            devices = _parse_devices(match["devices"], strategy)
        return Layout(kind=known.get(match["kind"], kind), strategy=strategy, devices=devices)


def _parse_devices(text: str, strategy: ParallelStrategy) -> tuple[int, ...]:
    """Read ``0-3,8``: one device per rank."""
    devices: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InvalidInput.at("layout", f"{text!r} is not a list of devices such as 0-3,8")
        run = range(int(first), int(last or first) + 1)
        if not run:
            raise InvalidInput.at("layout", f"{part!r} ends before it begins")
        if len(run) > strategy.num_ranks:  # no list of millions only to be refused
            raise InvalidInput.at(
                "devices",
                f"has {len(run)} devices in {part} and {strategy} needs {strategy.num_ranks}",
            )
        devices += run
    return tuple(devices)
