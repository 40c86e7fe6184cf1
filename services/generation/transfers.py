"""A generation replica's part in reallocations: new weights arrive here."""

from collections.abc import Mapping, Sequence

from realloc.core.errors import Conflict
from realloc.core.transfer import ParameterSpec
from realloc.shard.parameter_checks import check_parameters
from realloc.shard.transfer_service import PreparedTransfer
from realloc.transfer.executor import TransferReport
from services.generation.rollout_worker import RolloutWorker

_ANSWER_SECONDS = 3.0
"""How long after the transfer's own deadline the engine may say which peer it waited for."""
_SWITCH_SECONDS = 60.0
"""Deadline of a commit or an abort: copies within the device."""


class GenerationTransfers:
    """Receives into shadow parameters, between two steps of the engine."""

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker = worker
        self.weight_version = -1
        """Version that the engine serves; -1 before the first commit of a job."""

    def rendezvous(self) -> tuple[str, int]:
        """Transfers meet at a source, never here."""
        raise Conflict("a generation replica does not host transfers; ask a trainer")

    async def check(self, prepared: PreparedTransfer) -> Sequence[Mapping[str, ParameterSpec]]:
        """Refuse programs that do not fit the engine. What each of its ranks holds.

        Raises:
            InvalidInput: a wrong number of programs, or parameters that are not as the layout
                says, by name and rank.
        """
        held = await self._worker.parameter_specs(timeout_seconds=_SWITCH_SECONDS)
        check_parameters(prepared.expected, held)
        return held

    async def digest(self, prepared: PreparedTransfer) -> Mapping[tuple[int, int], int]:
        """Nothing: a replica sends only what it received."""
        return {}

    async def execute(self, prepared: PreparedTransfer) -> Sequence[TransferReport]:
        """Receive; rollouts wait meanwhile."""
        return await self._worker.stage_weights(
            prepared.session,
            prepared.programs,
            timeout_seconds=prepared.session.timeout_seconds + _ANSWER_SECONDS,
        )

    async def commit(self, prepared: PreparedTransfer, weight_version: int) -> None:
        """Make the new weights live and drop what was cached with the old ones."""
        await self._worker.commit_weights(weight_version, timeout_seconds=_SWITCH_SECONDS)
        self.weight_version = weight_version

    async def abort(self, prepared: PreparedTransfer) -> None:
        """Drop the shadow."""
        await self._worker.abort_weights(timeout_seconds=_SWITCH_SECONDS)
