"""New weights of a rank are staged in memory of their own."""

from collections.abc import Mapping
from unittest import mock

import numpy as np
import pytest
import torch

from realloc.core.errors import Unavailable
from realloc.core.transfer import TransferSession
from realloc.transfer.endpoint import TransferEndpoint
from services.generation.weight_receiver import WeightReceiver
from tests.support.transfer_programs import Holding, make_programs

SHAPE = (4, 6)


def test_a_sender_that_writes_after_a_failure_reaches_nobody() -> None:
    """What a failed transfer may still write is not the memory of the next one."""
    holding = Holding(
        endpoint=0, parameter="w", canonical=0, rows=(0, 4), cols=(0, 6), width=6
    )  # fmt: skip
    (program,) = make_programs([SHAPE], [holding], [holding], 1)
    session = TransferSession(
        session_id="1",
        group_id="g",
        store_host="127.0.0.1",
        store_port=1,
        num_endpoints=1,
        canonical_tensors=("w",),
        dtype="float32",
        timeout_seconds=1.0,
    )
    receiver = WeightReceiver(
        {"w": torch.zeros(SHAPE)}, transfer_host="127.0.0.1", name="generation-0", device=0
    )
    written: list[torch.Tensor] = []

    def run(
        endpoint: TransferEndpoint, session: object, program: object, source: object,
        destination: Mapping[str, torch.Tensor],
    ) -> None:  # fmt: skip
        written.append(destination["w"])
        if len(written) == 1:
            raise Unavailable("the sender is silent")
        destination["w"].fill_(2)
        written[0].fill_(1)  # the sender of the first transfer wakes up

    with mock.patch.object(TransferEndpoint, "run", run):
        with pytest.raises(Unavailable):
            receiver.stage(session, program)
        receiver.stage(session, program)
        receiver.commit()
    assert np.array_equal(receiver._parameters["w"], np.full(SHAPE, 2))
    receiver.close()
