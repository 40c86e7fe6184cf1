"""A trainer's part in reallocations: it is where new weights come from.

They are read in a thread of their own, beside the engine's calls: while the actor's weights
move, the critic trains. `ModelLocks` keeps the model that moves as it is, and the version in the
request says that it is the right one. No collective of a call is shared with a transfer: it has
connections of its own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from realloc.core.errors import Conflict, InvalidInput
from realloc.core.transfer import ParameterSpec
from realloc.shard.parameter_checks import check_parameters, specs_of
from realloc.shard.transfer_service import PreparedTransfer
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import Attributes, current_traceparent, span
from realloc.transfer.digest import SentDigests
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport, source_parameters
from realloc.transfer.parameters import DTYPES
from services.trainer.engine import TrainerEngine
from services.trainer.model_locks import ModelLocks

Result = TypeVar("Result")
Parameters = Mapping[str, torch.Tensor]


class TrainerTransfers:
    """Sends parameters of the engine beside its calls, one transfer at a time."""

    def __init__(
        self, engine: TrainerEngine, endpoint: TransferEndpoint, locks: ModelLocks
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._locks = locks
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix="transfers", initializer=_use_own_stream
        )

    def rendezvous(self) -> tuple[str, int]:
        """Host and port of this shard's store."""
        return self._endpoint.store_host, self._endpoint.store_port

    async def check(self, prepared: PreparedTransfer) -> Sequence[Mapping[str, ParameterSpec]]:
        """Refuse what this rank cannot send. What it holds.

        Raises:
            InvalidInput: more than one program, something to receive, or parameters that are
                not as the layout says, by name and rank.
        """
        if len(prepared.programs) != 1:
            raise InvalidInput.at("programs", "a trainer is one rank and takes one program")
        if prepared.expected[0].destination:
            raise InvalidInput.at("programs[0]", "writes parameters; a trainer only sends them")
        held = [specs_of(self._engine.parameters(prepared.model_id))]
        check_parameters(prepared.expected, held)
        return held

    async def digest(self, prepared: PreparedTransfer) -> Mapping[tuple[int, int], int]:
        """Digests of this rank's blocks.

        Raises:
            Conflict: this rank has another version.
        """
        program, dtype = prepared.programs[0], DTYPES[prepared.session.dtype]

        def work(parameters: Parameters) -> Mapping[tuple[int, int], int]:
            digests = SentDigests(program, source_parameters(program, parameters, {}), dtype)
            for _ in digests.own_steps():
                pass
            return digests.values()

        return await self._beside_calls(prepared, work)

    async def execute(self, prepared: PreparedTransfer) -> Sequence[TransferReport]:
        """Send this rank's blocks.

        Raises:
            Conflict: this rank has another version.
        """

        session, program = prepared.session, prepared.programs[0]
        parent = current_traceparent()
        attributes: Attributes = {
            Attribute.MODEL_ID: prepared.model_id,
            Attribute.WEIGHT_VERSION: prepared.weight_version,
            Attribute.LANE: "transfers",
        }

        def work(parameters: Parameters) -> TransferReport:
            with span(Span.REALLOCATION_RANK, attributes, parent=parent) as current:
                report = self._endpoint.run(session, program, parameters, {})
                current.set_attribute(Attribute.SENT_BYTES, report.sent_bytes)
                peers = set(program.sends.peer.tolist()) - {program.endpoint}
                transports = self._endpoint.transports(session.group_id, peers)
                current.set_attribute(Attribute.TRANSPORTS, ",".join(transports))
            return report

        return [await self._beside_calls(prepared, work)]

    async def commit(self, prepared: PreparedTransfer, weight_version: int) -> None:
        """Nothing to do: a source keeps its weights."""

    async def abort(self, prepared: PreparedTransfer) -> None:
        """Nothing to do: a source keeps its weights."""

    def close(self) -> None:
        """Begin no more transfers."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _beside_calls(
        self, prepared: PreparedTransfer, work: Callable[[Parameters], Result]
    ) -> Result:
        """Read the model in the transfers' thread; a caller that leaves does not stop it."""
        model_id, timeout = prepared.model_id, prepared.session.timeout_seconds

        def read() -> Result:
            with self._locks.reading(model_id, timeout):
                held = self._engine.weight_version(model_id)
                if held != prepared.weight_version:
                    raise Conflict(
                        f"{model_id} is at version {held} here and version "
                        f"{prepared.weight_version} is asked for"
                    )
                return work(self._engine.parameters(model_id))

        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._executor, read)
        reading.add_done_callback(_seen)
        return await asyncio.shield(reading)


def _seen(ended: "asyncio.Future[Any]") -> None:
    """Where the caller has left nobody else looks at the error."""
    if not ended.cancelled():
        ended.exception()


def _use_own_stream() -> None:
    """On a GPU a transfer's copies and waits must not stand between the kernels of a call."""
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream())
