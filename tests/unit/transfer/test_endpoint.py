"""A process as an end of transfers."""

import pytest
import torch

from realloc.core.errors import InvalidInput
from realloc.transfer.endpoint import TransferEndpoint


@pytest.mark.parametrize(("device", "least"), [(None, 32 << 20), ("cuda", 256 << 20)])
def test_too_little_staging_is_refused_at_the_start(device: str | None, least: int) -> None:
    """Not at the first transfer, when others wait for it."""
    cuda = None if device is None else torch.device(device)
    with pytest.raises(InvalidInput, match=f"staging_bytes: is {least - 1} .* at least {least}"):
        TransferEndpoint("127.0.0.1", "trainer-0", cuda_device=cuda, staging_bytes=least - 1)
