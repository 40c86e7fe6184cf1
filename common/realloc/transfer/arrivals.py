"""Which canonical tensors have arrived, told as soon as it is so."""

from collections.abc import Callable
from dataclasses import dataclass

from realloc.transfer.digest import PassingDigests
from realloc.transfer.parts import Part, Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """All that an endpoint receives of a canonical tensor is there.

    Its bytes lie in the destination parameters and do not change before the transfer's end. On
    a GPU this is so for work on the stream that executes the transfer.
    """

    canonical: int
    """Index into the plan's canonical tensors."""
    digest: int | None
    """Of what this endpoint holds of it, signed 64 bits; None in a transfer without digests."""


class Arrivals:
    """Counts what is still to come of each tensor."""

    def __init__(
        self,
        parts: Parts,
        digests: PassingDigests | None,
        arrived: Callable[[Arrival], None],
    ) -> None:
        self._canonical = parts.canonical
        self._missing = parts.num_elements.tolist()
        self._digests = digests
        self._arrived = arrived

    def add(self, parts: tuple[Part, ...]) -> None:
        """Some parts are in place; call back for each tensor that is complete with them."""
        complete = []
        for part in parts:
            self._missing[part.key] -= part.rectangle.num_elements
            if self._missing[part.key] == 0:
                complete.append(part.key)
        if not complete:
            return
        values = None if self._digests is None else self._digests.values()
        for key in complete:
            digest = None if values is None else int(values[key])
            self._arrived(Arrival(canonical=self._canonical[key], digest=digest))
