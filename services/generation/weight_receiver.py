"""New weights of one vLLM rank: staged beside the live parameters, then committed or dropped."""

from collections.abc import Mapping

import torch

from realloc.core.transfer import ParameterSpec, TransferProgram, TransferSession
from realloc.shard.parameter_checks import specs_of
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport
from realloc.transfer.shadow import ShadowParameters
from realloc.transfer.staging import DEFAULT_STAGING_BYTES


class WeightReceiver:
    """The destination end of reallocations for one rank's parameters."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        *,
        transfer_host: str,
        name: str,
        device: int | None,
        staging_bytes: int = DEFAULT_STAGING_BYTES,
    ) -> None:
        """Serve these parameters.

        Args:
            parameters: live, by vLLM name; the engine computes with them.
            transfer_host: address of this machine that the other endpoints can connect to.
            name: name of this rank, for errors.
            device: global id of the device of this rank; None where it is not known.
            staging_bytes: most bytes of staging buffers of this rank.
        """
        self._parameters = dict(parameters)
        where = next(iter(self._parameters.values())).device
        self._endpoint = TransferEndpoint(
            transfer_host,
            name,
            device=device,
            cuda_device=where if where.type == "cuda" else None,
            staging_bytes=staging_bytes,
        )
        self._shadow = ShadowParameters(self._parameters, self._endpoint.allocate)

    def specs(self) -> dict[str, ParameterSpec]:
        """Local shape and element type of each parameter by name."""
        return specs_of(self._parameters)

    def stage(self, session: TransferSession, program: TransferProgram) -> TransferReport:
        """Receive what the program says; the live parameters are only read.

        Raises:
            Conflict: weights are staged already.
            NotFound: the program writes a parameter that is not here.
            Unavailable: a peer is gone or late; nothing is staged.
        """
        destination = self._shadow.stage(program)
        try:
            return self._endpoint.run(session, program, {}, destination)
        except BaseException:
            # A sender that still writes shall do so where nobody reads any more.
            self._shadow.release()
            raise

    def commit(self) -> None:
        """Copy what was staged into the live parameters."""
        self._shadow.commit()

    def abort(self) -> None:
        """Forget what was staged."""
        self._shadow.abort()

    def close(self) -> None:
        """Leave all transfer groups; give the memory back."""
        self._shadow.release()
        self._endpoint.close()
