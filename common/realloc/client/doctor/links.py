"""Check of the links: all trainers measure messages and sums between all pairs of them."""

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from realloc.client.doctor.deployment import Deployment, Reach
from realloc.client.doctor.findings import CheckResult, Finding, Status, skipped
from realloc.coordination.membership import Member
from realloc.core.errors import ReallocError
from realloc.cost.measured_links import LinkTable, MeasuredPair

_SLOW = 3.0
"""A pair this many times slower than the median of its kind is worth a look."""
_WAIT_SECONDS = 20.0
"""Longest wait of a rank for a peer."""
_SECONDS_PER_ROUND = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the trainers answered, in the order of their ranks."""

    trainers: Sequence[Member]
    answers: Sequence[Any]

    @property
    def failed(self) -> dict[str, str]:
        return {
            trainer.name: str(answer)
            for trainer, answer in zip(self.trainers, self.answers, strict=True)
            if isinstance(answer, ReallocError)
        }


def free_trainers(deployment: Deployment) -> tuple[Member, ...]:
    """Trainers that answer and that no job holds."""
    return tuple(
        each
        for each in deployment.shards()
        if each.kind == "trainer" and not deployment.answers[each.key].job_id
    )


async def check_links(deployment: Deployment, reach: Reach, *, message_bytes: int) -> CheckResult:
    """Measure; a trainer that a job holds takes no part."""
    trainers = free_trainers(deployment)
    busy = [
        f"{each.name} (job {deployment.answers[each.key].job_id})"
        for each in deployment.shards()
        if each.kind == "trainer" and each not in trainers
    ]
    if len(trainers) < 2:
        reason = f"jobs hold {', '.join(busy)}" if busy else "fewer than two trainers answer"
        return skipped("links", reason, "run it again when the cluster is idle")
    outcome = await _measure(trainers, reach, message_bytes)
    if outcome.failed:
        return _broken(outcome)
    table = _table(outcome, message_bytes)
    return CheckResult(
        name="links",
        summary=_summary(table),
        findings=[*_busy(busy), *_slow_pairs(table, trainers)],
        data=table.to_json(),
    )


async def _measure(trainers: Sequence[Member], reach: Reach, message_bytes: int) -> _Outcome:
    """All trainers at once; each answers or fails by the deadline."""
    first = shard_pb2_grpc.TransferServiceStub(reach.channel(trainers[0]))
    try:
        meet = await first.GetRendezvous(shard_pb2.GetRendezvousRequest(), timeout=_WAIT_SECONDS)
    except ReallocError as error:
        return _Outcome(trainers=trainers, answers=[error] * len(trainers))
    measurement_id = f"doctor-{secrets.token_hex(8)}"

    async def ask(rank: int, trainer: Member) -> Any:
        stub = trainer_pb2_grpc.TrainerServiceStub(reach.channel(trainer))
        request = trainer_pb2.MeasureLinksRequest(
            measurement_id=measurement_id,
            store_host=meet.host,
            store_port=meet.port,
            rank=rank,
            num_ranks=len(trainers),
            message_bytes=message_bytes,
            timeout_seconds=_WAIT_SECONDS,
        )
        deadline = 2 * _WAIT_SECONDS + _SECONDS_PER_ROUND * len(trainers)
        try:
            return await stub.MeasureLinks(request, timeout=deadline)
        except ReallocError as error:
            return error

    answers = await asyncio.gather(*(ask(*numbered) for numbered in enumerate(trainers)))
    return _Outcome(trainers=trainers, answers=answers)


def _broken(outcome: _Outcome) -> CheckResult:
    findings = [
        Finding(
            status=Status.FAILED,
            subject=name,
            problem=reason,
            advice="check the interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), firewalls "
            "between the hosts, and the trainer's log",
        )
        for name, reason in outcome.failed.items()
    ]
    summary = f"{len(findings)} of {len(outcome.trainers)} trainers could not measure"
    return CheckResult(name="links", summary=summary, findings=findings)


def _table(outcome: _Outcome, message_bytes: int) -> LinkTable:
    """Each pair as the mean of its two ranks."""
    trainers = outcome.trainers
    samples: dict[tuple[int, int], list[Any]] = {}
    for rank, answer in enumerate(outcome.answers):
        for sample in answer.links:
            pair = (min(rank, sample.peer), max(rank, sample.peer))
            samples.setdefault(pair, []).append(sample)
    pairs = [
        MeasuredPair(
            devices=(trainers[low].device or 0, trainers[high].device or 0),
            crosses_nodes=_node(trainers[low]) != _node(trainers[high]),
            latency_seconds=mean(each.latency_seconds for each in both),
            bytes_per_second=mean(each.bytes_per_second for each in both),
            all_reduce_seconds=mean(each.all_reduce_seconds for each in both),
        )
        for (low, high), both in sorted(samples.items())
    ]
    per_node: dict[Any, int] = {}
    for trainer in trainers:
        per_node[_node(trainer)] = per_node.get(_node(trainer), 0) + 1
    return LinkTable(
        pairs=tuple(pairs),
        devices_per_node=max(per_node.values()),
        message_bytes=message_bytes,
        all_reduce_seconds=max(answer.all_reduce_seconds for answer in outcome.answers),
        backend=outcome.answers[0].backend,
    )


def _node(trainer: Member) -> Any:
    return trainer.host if trainer.node is None else trainer.node


def _summary(table: LinkTable) -> str:
    parts = [f"{len(table.pairs)} pairs over {table.backend}"]
    for label, crosses in (("inside nodes", False), ("between nodes", True)):
        pairs = [pair for pair in table.pairs if pair.crosses_nodes is crosses]
        if pairs:
            bandwidth = median(pair.bytes_per_second for pair in pairs)
            latency = median(pair.latency_seconds for pair in pairs)
            parts.append(f"{label} {bandwidth / 1e9:.2f} GB/s and {latency * 1e6:.0f} µs")
    size, seconds = table.message_bytes, table.all_reduce_seconds
    parts.append(f"all-reduce of {size / 2**20:g} MiB over all {seconds * 1e3:.1f} ms")
    return "; ".join(parts)


def _busy(busy: Sequence[str]) -> Iterator[Finding]:
    if busy:
        yield Finding(
            status=Status.SKIPPED,
            subject=", ".join(busy),
            problem="took no part: jobs hold them",
            advice="run it again when the cluster is idle",
        )


def _slow_pairs(table: LinkTable, trainers: Sequence[Member]) -> Iterator[Finding]:
    names: Mapping[int, str] = {each.device or 0: f"{each.name} ({each.host})" for each in trainers}
    for crosses in (False, True):
        pairs = [pair for pair in table.pairs if pair.crosses_nodes is crosses]
        if not pairs:
            continue
        usual = median(pair.bytes_per_second for pair in pairs)
        for pair in pairs:
            if pair.bytes_per_second * _SLOW < usual:
                yield Finding(
                    status=Status.WARNING,
                    subject=" – ".join(names[device] for device in pair.devices),
                    problem=f"{pair.bytes_per_second / 1e9:.2f} GB/s, where the median of its kind "
                    f"is {usual / 1e9:.2f}",
                    advice="look for a bad cable, a link that came up slow, or NUMA placement; "
                    "`nvidia-smi topo -m` and `ibstat` help",
                )
