"""The calls that carry one reallocation through its phases on the shards."""

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress

from realloc.api.shard.v1 import shard_pb2 as pb
from realloc.core.errors import NotFound, ReallocError, Unavailable
from realloc.core.transfer import TransferPlan, TransferSession
from realloc.wire.convert import to_proto
from services.param_store.digests import Digests, sum_digests
from services.param_store.orders import ReallocationOrder
from services.param_store.participants import Participant, Processes, each, settled
from services.param_store.plans import PlannedTransfer
from services.param_store.records import ReallocationRecord

ANSWER_SECONDS = 5.0
"""How much later than its own deadline a shard may say what it waited for in vain."""
ABORT_SECONDS = 5.0
"""Deadline of an abort; a shard that does not answer drops the session with the next one."""
_PAUSE_SECONDS = 0.1
_ENDPOINT = re.compile(r"\bendpoint (\d+)")


class Session:
    """One reallocation on its shards. Each method is one phase, at most once."""

    def __init__(
        self, order: ReallocationOrder, participants: Sequence[Participant], group_seed: str
    ) -> None:
        """
        Args:
            group_seed: sessions with the same seed and processes share their connections.
        """
        self.session_id = uuid.uuid4().hex
        self.participants = tuple(participants)
        self._order = order
        self._timeout = order.timeout_seconds
        members = "\n".join(f"{one.member.name} {one.member.incarnation}" for one in participants)
        meeting = f"{order.job_id}\n{group_seed}\n{members}"
        self._group_id = hashlib.sha256(meeting.encode()).hexdigest()[:16]
        self._host, self._port = "", 0
        self._uncast: tuple[int, ...] = ()
        self._names = {
            endpoint: name for one in self.participants for endpoint, name in one.named_endpoints()
        }

    async def meet(self) -> None:
        """Learn where the transfer world meets: at the first process, a source."""
        meeting = await self.participants[0].call(
            "GetRendezvous", pb.GetRendezvousRequest(), timeout_seconds=self._timeout
        )
        self._host, self._port = meeting.host, meeting.port

    async def prepare(self, planned: PlannedTransfer) -> None:
        """Hand out the programs; each shard checks them."""
        plan = planned.plan
        message = to_proto(self._transfer_session(plan), pb.TransferSession)

        async def one(participant: Participant) -> Sequence[int]:
            request = pb.PrepareTransferRequest(
                session=message,
                job_id=self._order.job_id,
                model_id=self._order.model_id,
                weight_version=self._order.weight_version,
                programs=[
                    to_proto(plan.programs[index], pb.TransferProgram)
                    for index in participant.endpoints
                ],
                expected=[
                    to_proto(planned.expected[index], pb.ExpectedParameters)
                    for index in participant.endpoints
                ],
            )
            response = await participant.call(
                "PrepareTransfer", request, timeout_seconds=self._timeout
            )
            return list(response.uncast)

        found = await each(self.participants, one)
        self._uncast = tuple(endpoint for endpoints in found for endpoint in endpoints)

    async def digest(self) -> Digests:
        """Digests of what the sources would send."""

        async def one(participant: Participant) -> Sequence[pb.Digest]:
            request = pb.DigestTransferRequest(session_id=self.session_id)
            response = await participant.call(
                "DigestTransfer", request, timeout_seconds=self._timeout + ANSWER_SECONDS
            )
            return list(response.digests)

        sources = [participant for participant in self.participants if participant.is_source]
        return sum_digests(item for found in await each(sources, one) for item in found)

    async def execute(self) -> list[pb.ExecuteTransferResponse]:
        """Move the bytes into shadow parameters."""

        async def one(participant: Participant) -> pb.ExecuteTransferResponse:
            request = pb.ExecuteTransferRequest(session_id=self.session_id, uncast=self._uncast)
            response: pb.ExecuteTransferResponse = await participant.call(
                "ExecuteTransfer", request, timeout_seconds=self._timeout + ANSWER_SECONDS
            )
            return response

        try:
            return await each(self.participants, one, due_seconds=self._timeout)
        except Unavailable as error:
            raise Unavailable(self._with_names(str(error))) from error

    def _with_names(self, text: str) -> str:
        """A message of a transfer with the names of processes in place of numbers."""
        return _ENDPOINT.sub(lambda found: self._names.get(int(found[1]), found[0]), text)

    def _transfer_session(self, plan: TransferPlan) -> TransferSession:
        return TransferSession(
            session_id=self.session_id,
            group_id=self._group_id,
            store_host=self._host,
            store_port=self._port,
            num_endpoints=len(plan.endpoints),
            canonical_tensors=plan.canonical_tensors,
            dtype=plan.dtype,
            timeout_seconds=self._timeout,
        )


async def commit(
    record: ReallocationRecord, processes: Processes, timeout_seconds: float
) -> tuple[str, ...]:
    """Make the staged weights live everywhere; a lost answer is asked for again.

    Every process is asked, also where others fail.

    Returns:
        Destinations that are lost, and the new weights with them.

    Raises:
        Unavailable: a process that is there did not answer in time; commit again.
    """
    request = pb.CommitTransferRequest(
        session_id=record.session_id, weight_version=record.target.weight_version
    )
    deadline = time.monotonic() + timeout_seconds
    present = recorded_participants(record, processes)
    here = {participant.member.name for participant in present}
    lost = [one.name for one in record.participants if one.is_destination and one.name not in here]

    async def one(participant: Participant) -> None:
        while processes.is_present(participant.member):
            with suppress(Unavailable):
                await participant.call("CommitTransfer", request, timeout_seconds=timeout_seconds)
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{participant.member.name} did not answer the commit of "
                    f"{record.model_id} version {record.target.weight_version} in time"
                )
            await asyncio.sleep(_PAUSE_SECONDS)
        raise NotFound(f"{participant.member.name} left")

    errors = await settled(one(participant) for participant in present)
    for index, error in errors.items():
        if not isinstance(error, NotFound):
            raise error
        if present[index].is_destination:
            lost.append(present[index].member.name)
    return tuple(lost)


async def abort(record: ReallocationRecord, processes: Processes) -> None:
    """Drop what was staged, as far as possible."""
    request = pb.AbortTransferRequest(session_id=record.session_id)

    async def one(participant: Participant) -> None:
        with suppress(ReallocError):
            await participant.call("AbortTransfer", request, timeout_seconds=ABORT_SECONDS)

    await asyncio.gather(*map(one, recorded_participants(record, processes)))


def recorded_participants(
    record: ReallocationRecord, processes: Processes
) -> tuple[Participant, ...]:
    """Those of a record's processes that have not left or restarted since."""
    found = []
    for recorded in record.participants:
        member = processes.find(recorded.name)
        if member is not None and member.incarnation == recorded.incarnation:
            found.append(
                Participant(
                    member=member,
                    transfer=processes.stub(member),
                    is_destination=recorded.is_destination,
                    ranks=f"session {record.session_id}",
                )
            )
    return tuple(found)
