"""A trainer's part in reallocations: it is where new weights come from."""

from collections.abc import Mapping, Sequence

from realloc.core.errors import InvalidInput
from realloc.shard.ordered_calls import OrderedCalls
from realloc.shard.parameter_checks import check_parameters, specs_of
from realloc.shard.transfer_service import PreparedTransfer
from realloc.transfer.digest import SentDigests
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport, source_parameters
from realloc.transfer.parameters import DTYPES
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
            InvalidInput: more than one program, something to receive, or parameters that are
                not as the layout says, by name and rank.
        """
        if len(prepared.programs) != 1:
            raise InvalidInput.at("programs", "a trainer is one rank and takes one program")
        if prepared.expected[0].destination:
            raise InvalidInput.at("programs[0]", "writes parameters; a trainer only sends them")
        check_parameters(prepared.expected, [specs_of(self._engine.parameters(prepared.model_id))])

    async def digest(
        self, prepared: PreparedTransfer, sequence: int
    ) -> Mapping[tuple[int, int], int]:
        """Digests of this rank's blocks when its turn comes."""
        program, dtype = prepared.programs[0], DTYPES[prepared.session.dtype]

        def work() -> Mapping[tuple[int, int], int]:
            parameters = self._engine.parameters(prepared.model_id)
            digests = SentDigests(program, source_parameters(program, parameters, {}), dtype)
            for _ in digests.own_steps():
                pass
            return digests.values()

        timeout = prepared.session.timeout_seconds
        return await self._calls.run(work, sequence=sequence, timeout=timeout)

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

    def give_back(self, sequence: int) -> None:
        """Pass the turn on when it comes, unless a call took it."""
        self._calls.give_back(sequence)
