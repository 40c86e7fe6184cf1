"""Fixed-size buffers that chunks pass through, reused over rounds and transfers."""

from collections.abc import Callable

import torch

from realloc.core.errors import InvalidInput

DEFAULT_STAGING_BYTES = 256 << 20
DEFAULT_CHUNK_BYTES = 16 << 20
"""Of a chunk in host memory. Processor time per byte falls up to here, over gloo as well as in
shared memory, and is the same at twice the size; half of it still fits a cache of 32 MiB."""
CUDA_CHUNK_BYTES = 32 << 20
"""Of a chunk in device memory: large beside the cost of launching its copy."""
CAST_CHUNKS = 4
"""Buffers that one operation on open device memory may need where elements are cast. Both sides cut
by it, so it depends on no configuration; a process needs twice as many."""
LEAST_CUDA_STAGING_BYTES = 2 * CAST_CHUNKS * CUDA_CHUNK_BYTES


class StagingBuffers:
    """At most `staging_bytes` of memory in buffers of one chunk each, made when first needed.

    The buffer that was freed last is taken first: on a CPU it is still in the cache.
    """

    def __init__(
        self,
        allocate: Callable[[int], torch.Tensor],
        *,
        staging_bytes: int = DEFAULT_STAGING_BYTES,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> None:
        """Allocate nothing yet.

        Args:
            allocate: makes a uint8 buffer of a number of bytes.
            staging_bytes: most bytes of all buffers together.
            chunk_bytes: bytes of one buffer, a multiple of 8.

        Raises:
            InvalidInput: room for fewer than two buffers, one to send and one to receive.
        """
        if chunk_bytes <= 0 or chunk_bytes % 8:
            raise InvalidInput.at("chunk_bytes", f"{chunk_bytes} is not a multiple of 8")
        if staging_bytes < 2 * chunk_bytes:
            raise InvalidInput.at(
                "staging_bytes",
                f"{staging_bytes} holds fewer than two chunks of {chunk_bytes} bytes",
            )
        self.chunk_bytes = chunk_bytes
        self.max_buffers = staging_bytes // chunk_bytes
        self._allocate = allocate
        self._free: list[torch.Tensor] = []
        self._num_buffers = 0

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the buffers made so far."""
        return self._num_buffers * self.chunk_bytes

    @property
    def num_free(self) -> int:
        """Buffers that can be taken."""
        return self.max_buffers - self._num_buffers + len(self._free)

    def take(self) -> torch.Tensor:
        """A free buffer, uint8 [chunk_bytes]; the caller never holds more than `max_buffers`."""
        if self._free:
            return self._free.pop()
        assert self._num_buffers < self.max_buffers, "more staging buffers than there is room for"
        self._num_buffers += 1
        return self._allocate(self.chunk_bytes)

    def give_back(self, buffer: torch.Tensor) -> None:
        """The buffer is free again."""
        self._free.append(buffer)

    def release(self) -> None:
        """Give the memory of all free buffers back; they are made anew when needed."""
        self._num_buffers -= len(self._free)
        self._free.clear()
