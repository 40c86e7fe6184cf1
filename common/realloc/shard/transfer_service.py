"""TransferService: a shard's part in reallocations, the same for every kind of shard."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from realloc.api.shard.v1 import shard_pb2 as pb
from realloc.api.shard.v1 import shard_pb2_grpc
from realloc.core.errors import InvalidInput, NotFound, ResourceExhausted
from realloc.core.transfer import (
    ExpectedParameters,
    ParameterSpec,
    TransferProgram,
    TransferSession,
)
from realloc.shard.parameter_checks import uncast_endpoints
from realloc.transfer.executor import TransferReport
from realloc.wire.convert import from_proto

_MAX_SESSIONS = 16


class PreparedTransfer:
    """A session that this shard has agreed to."""

    def __init__(
        self,
        *,
        session: TransferSession,
        job_id: str,
        model_id: str,
        weight_version: int,
        programs: Sequence[TransferProgram],
        expected: Sequence[ExpectedParameters],
    ) -> None:
        self.session = session
        self.job_id = job_id
        self.model_id = model_id
        self.weight_version = weight_version
        self.programs = tuple(programs)
        self.expected = tuple(expected)


class TransferParty(Protocol):
    """What a kind of shard does in each phase."""

    def rendezvous(self) -> tuple[str, int]:
        """Host and port where this shard hosts transfer worlds."""
        ...

    async def check(self, prepared: PreparedTransfer) -> Sequence[Mapping[str, ParameterSpec]]:
        """Refuse programs that do not fit the parameters; move nothing. What each rank holds."""
        ...

    async def digest(self, prepared: PreparedTransfer) -> Mapping[tuple[int, int], int]:
        """Digests of what the programs send, by destination endpoint and canonical tensor."""
        ...

    async def execute(self, prepared: PreparedTransfer) -> Sequence[TransferReport]:
        """Move the bytes; one report per program."""
        ...

    async def commit(self, prepared: PreparedTransfer, weight_version: int) -> None:
        """Make staged weights live."""
        ...

    async def abort(self, prepared: PreparedTransfer) -> None:
        """Drop staged weights."""
        ...


class TransferServicer(shard_pb2_grpc.TransferServiceServicer):
    """Keeps sessions from prepare to commit or abort; a bounded number of them."""

    def __init__(self, party: TransferParty) -> None:
        self._party = party
        self._prepared: dict[str, PreparedTransfer] = {}
        self._committed: dict[str, int] = {}
        self._changing = asyncio.Lock()

    async def GetRendezvous(
        self, request: pb.GetRendezvousRequest, context: Any
    ) -> pb.GetRendezvousResponse:
        host, port = self._party.rendezvous()
        return pb.GetRendezvousResponse(host=host, port=port)

    async def PrepareTransfer(
        self, request: pb.PrepareTransferRequest, context: Any
    ) -> pb.PrepareTransferResponse:
        session = from_proto(request.session, TransferSession, "session")
        prepared = _prepared(request, session)
        async with self._changing:
            await self._drop_older(prepared)
            if len(self._prepared) >= _MAX_SESSIONS:
                raise ResourceExhausted(
                    f"{_MAX_SESSIONS} transfers are prepared here; end one first"
                )
            held = await self._party.check(prepared)
            self._prepared[session.session_id] = prepared
        return pb.PrepareTransferResponse(
            uncast=uncast_endpoints(session.dtype, prepared.programs, prepared.expected, held)
        )

    async def DigestTransfer(
        self, request: pb.DigestTransferRequest, context: Any
    ) -> pb.DigestTransferResponse:
        digests = await self._party.digest(self._find(request.session_id))
        response = pb.DigestTransferResponse()
        for (endpoint, canonical), value in digests.items():
            response.digests.add(endpoint=endpoint, canonical=canonical, value=value % 2**64)
        return response

    async def ExecuteTransfer(
        self, request: pb.ExecuteTransferRequest, context: Any
    ) -> pb.ExecuteTransferResponse:
        prepared = self._find(request.session_id)
        prepared.session = replace(prepared.session, uncast=tuple(request.uncast))
        reports = await self._party.execute(prepared)
        return _response(prepared, reports)

    async def CommitTransfer(
        self, request: pb.CommitTransferRequest, context: Any
    ) -> pb.CommitTransferResponse:
        # A repeated commit waits for the first one; where that was cut off, again is harmless.
        async with self._changing:
            if request.session_id not in self._committed:
                prepared = self._find(request.session_id)
                await self._party.commit(prepared, request.weight_version)
                self._committed[request.session_id] = request.weight_version
                self._prepared.pop(request.session_id, None)
            while len(self._committed) > _MAX_SESSIONS:
                self._committed.pop(next(iter(self._committed)))
        return pb.CommitTransferResponse()

    async def AbortTransfer(
        self, request: pb.AbortTransferRequest, context: Any
    ) -> pb.AbortTransferResponse:
        async with self._changing:
            await self._abort(request.session_id)
        return pb.AbortTransferResponse()

    def release(self, job_id: str) -> None:
        """Forget the sessions of a job."""
        for session_id, prepared in list(self._prepared.items()):
            if prepared.job_id == job_id:
                del self._prepared[session_id]

    async def _drop_older(self, prepared: PreparedTransfer) -> None:
        """Abort what an earlier session of the model left: nobody will end it any more."""
        for session_id, other in list(self._prepared.items()):
            same = (other.job_id, other.model_id) == (prepared.job_id, prepared.model_id)
            if same and session_id != prepared.session.session_id:
                await self._abort(session_id)

    async def _abort(self, session_id: str) -> None:
        prepared = self._prepared.get(session_id)
        if prepared is not None:
            await self._party.abort(prepared)
            self._prepared.pop(session_id, None)

    def _find(self, session_id: str) -> PreparedTransfer:
        if session_id not in self._prepared:
            raise NotFound(f"no transfer {session_id!r} is prepared here; it ended or was aborted")
        return self._prepared[session_id]


def _prepared(request: pb.PrepareTransferRequest, session: TransferSession) -> PreparedTransfer:
    """What a request asks this shard to agree to."""
    if not request.programs:
        raise InvalidInput.at("programs", "is empty; a shard that takes part has a program")
    if len(request.expected) != len(request.programs):
        raise InvalidInput.at(
            "expected",
            f"describes {len(request.expected)} ranks and there are "
            f"{len(request.programs)} programs",
        )
    return PreparedTransfer(
        session=session,
        job_id=request.job_id,
        model_id=request.model_id,
        weight_version=request.weight_version,
        programs=[
            from_proto(program, TransferProgram, f"programs[{index}]")
            for index, program in enumerate(request.programs)
        ],
        expected=[
            from_proto(expected, ExpectedParameters, f"expected[{index}]")
            for index, expected in enumerate(request.expected)
        ],
    )


def _response(
    prepared: PreparedTransfer, reports: Sequence[TransferReport]
) -> pb.ExecuteTransferResponse:
    response = pb.ExecuteTransferResponse()
    for program, report in zip(prepared.programs, reports, strict=True):
        response.sent_bytes += report.sent_bytes + report.local_bytes
        response.received_bytes += report.received_bytes + report.local_bytes
        response.seconds = max(response.seconds, report.seconds)
        for (endpoint, canonical), value in report.sent_digests.items():
            response.sent.add(endpoint=endpoint, canonical=canonical, value=value % 2**64)
        for canonical, value in report.received_digests.items():
            response.received.add(
                endpoint=program.endpoint, canonical=canonical, value=value % 2**64
            )
    return response
