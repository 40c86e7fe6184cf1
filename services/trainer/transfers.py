"""A trainer's part in reallocations: it is where new weights come from."""

from collections.abc import Sequence

from realloc.core.errors import InvalidInput
from realloc.shard.ordered_calls import OrderedCalls
from realloc.shard.transfer_service import PreparedTransfer
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport
from services.trainer.engine import TrainerEngine


class TrainerTransfers:
    """Sends parameters of the engine in the order of the job's calls."""

    def __init__(
        self, engine: TrainerEngine, endpoint: TransferEndpoint, calls: OrderedCalls
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._calls = calls

    def rendezvous(self) -> tuple[str, int]:
        """Host and port of this shard's store."""
        return self._endpoint.store_host, self._endpoint.store_port

    async def check(self, prepared: PreparedTransfer) -> None:
        """Refuse what this rank cannot send.

        Raises:
            InvalidInput: more than one program, or a parameter that is not here.
        """
        if len(prepared.programs) != 1:
            raise InvalidInput.at("programs", "a trainer is one rank and takes one program")
        program = prepared.programs[0]
        held = self._engine.parameters(prepared.model_id)
        missing = [name for name in program.source_tensors if name not in held]
        if missing:
            raise InvalidInput.at(
                "programs[0].source_tensors", f"{prepared.model_id} has no {missing[0]} here"
            )

    async def execute(self, prepared: PreparedTransfer, sequence: int) -> Sequence[TransferReport]:
        """Send this rank's blocks when its turn comes."""

        def work() -> TransferReport:
            parameters = self._engine.parameters(prepared.model_id)
            return self._endpoint.run(prepared.session, prepared.programs[0], parameters, {})

        timeout = prepared.session.timeout_seconds
        return [await self._calls.run(work, sequence=sequence, timeout=timeout)]

    async def commit(self, prepared: PreparedTransfer, weight_version: int) -> None:
        """Nothing to do: a source keeps its weights."""

    async def abort(self, prepared: PreparedTransfer) -> None:
        """Nothing to do: a source keeps its weights."""
