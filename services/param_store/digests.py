"""What digests say: whether weights arrived whole, and which tensors have changed."""

from collections.abc import Iterable, Mapping

from realloc.api.shard.v1 import shard_pb2
from realloc.core.errors import Unavailable
from realloc.core.transfer import TransferPlan

Digests = Mapping[tuple[int, int], int]
"""Sum modulo 2^64 per destination endpoint and canonical tensor."""


def sum_digests(digests: Iterable[shard_pb2.Digest]) -> dict[tuple[int, int], int]:
    """Add the digests of all senders."""
    sums: dict[tuple[int, int], int] = {}
    for digest in digests:
        key = (digest.endpoint, digest.canonical)
        sums[key] = (sums.get(key, 0) + digest.value) % 2**64
    return sums


def changed_tensors(before: Digests, now: Digests, plan: TransferPlan) -> frozenset[str]:
    """Names of canonical tensors whose digest differs at any destination."""
    return frozenset(
        plan.canonical_tensors[key[1]]
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
    )


def verify_digests(reports: Iterable[shard_pb2.ExecuteTransferResponse], plan: TransferPlan) -> int:
    """Compare what was sent with what lies at each destination.

    Returns:
        How many digests agreed: canonical tensors times destinations.

    Raises:
        Unavailable: one differs; the message names the tensor and the process.
    """
    reports = list(reports)
    sent = sum_digests(digest for report in reports for digest in report.sent)
    received = sum_digests(digest for report in reports for digest in report.received)
    for endpoint, canonical in sorted(sent.keys() | received.keys()):
        if sent.get((endpoint, canonical)) != received.get((endpoint, canonical)):
            raise Unavailable(
                f"{plan.canonical_tensors[canonical]} arrived damaged at "
                f"{plan.endpoints[endpoint].name}: its digest differs from what was sent; "
                "nothing was changed, ask again"
            )
    return len(received)
