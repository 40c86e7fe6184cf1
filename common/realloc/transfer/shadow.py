"""Shadow parameters: where new weights arrive while the live ones still serve."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from realloc.core.errors import Conflict, NotFound
from realloc.core.transfer import TransferProgram


class ShadowParameters:
    """A second copy of a process's parameters, live only by an explicit commit.

    Stage, then commit or abort. A failure between them leaves the live parameters untouched.
    Memory is allocated at the first stage and reused until `release`.
    """

    def __init__(
        self,
        live: Mapping[str, torch.Tensor],
        allocate: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        """Stand beside the live parameters; allocate nothing.

        Args:
            allocate: makes a uint8 tensor of a number of bytes on the device of the live
                parameters, as `TransferEndpoint.allocate`; None: ordinary memory.
        """
        self._live = dict(live)
        self._allocate = allocate
        self._shadow: dict[str, torch.Tensor] = {}
        self._staged: tuple[str, ...] = ()

    @property
    def staged(self) -> tuple[str, ...]:
        """Names of the parameters that the next commit replaces."""
        return self._staged

    @property
    def allocated_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._shadow.values())

    def stage(self, program: TransferProgram) -> Mapping[str, torch.Tensor]:
        """The shadows of all parameters that the program writes, by local name.

        Elements that the program does not write (the padding of a vocabulary) keep their
        live value.

        Raises:
            NotFound: the program writes a parameter that this process lacks.
            Conflict: weights are staged already; commit or abort them first.
        """
        if self._staged:
            raise Conflict("weights are staged already; commit or abort them first")
        written = {
            name: elements
            for name, elements in zip(
                program.destination_tensors, _written_elements(program), strict=True
            )
            if elements
        }
        missing = [name for name in written if name not in self._live]
        if missing:
            raise NotFound(f"this process has no parameters {', '.join(missing)}")
        shadows = {name: self._prepare(name, elements) for name, elements in written.items()}
        self._staged = tuple(written)
        return shadows

    def commit(self) -> None:
        """Copy what was staged into the live parameters, in place."""
        with torch.no_grad():
            for name in self._staged:
                self._live[name].copy_(self._shadow[name])
        self._staged = ()

    def abort(self) -> None:
        """Forget what was staged; safe to call at any time."""
        self._staged = ()

    def release(self) -> None:
        """Abort and give the memory back."""
        self.abort()
        self._shadow.clear()

    def _prepare(self, name: str, written_elements: int) -> torch.Tensor:
        live = self._live[name]
        shadow = self._shadow.get(name)
        if shadow is None:
            shadow = self._shadow[name] = self._empty_like(live)
        if written_elements < live.numel():
            with torch.no_grad():
                shadow.copy_(live)
        return shadow

    def _empty_like(self, live: torch.Tensor) -> torch.Tensor:
        if self._allocate is None:
            return torch.empty(live.shape, dtype=live.dtype, device=live.device)
        return self._allocate(live.nbytes).view(live.dtype).view(live.shape)


def _written_elements(program: TransferProgram) -> list[int]:
    """Elements that a program writes in each of its destination parameters."""
    blocks = program.receives.blocks
    written = np.zeros(len(program.destination_tensors), dtype=np.int64)
    np.add.at(written, blocks.tensor, blocks.rows * blocks.cols)
    return [int(count) for count in written]
