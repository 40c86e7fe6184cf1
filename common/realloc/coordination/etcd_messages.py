"""Between the Store's nouns and etcd's messages."""

from collections.abc import Collection, Mapping
from typing import Any

from aetcd import rpc

from realloc.coordination.store import Compare, Entry, Event, EventKind


def range_request(key: str, *, whole_prefix: bool = False) -> Any:
    """A linearizable read of one key, or of all keys that start with it, in their order."""
    start = key.encode()
    if not whole_prefix:
        return rpc.RangeRequest(key=start)
    return rpc.RangeRequest(key=start or b"\0", range_end=prefix_end(start))


def transaction_request(
    compare: Collection[Compare], put: Mapping[str, bytes], delete: Collection[str], lease_id: int
) -> Any:
    """All writes if every condition holds; otherwise a read of the compared keys."""
    writes = [
        rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value, lease=lease_id))
        for key, value in put.items()
    ]
    deletes = [
        rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))
        for key in delete
    ]
    return rpc.TxnRequest(
        compare=[message for each in compare for message in _compare_messages(each)],
        success=[*deletes, *writes],
        failure=[rpc.RequestOp(request_range=range_request(each.key)) for each in compare],
    )


def failed_compares(compare: Collection[Compare], response: Any) -> list[Compare]:
    """The conditions that did not hold, from what the transaction read in their stead."""
    ranges = [operation.response_range for operation in response.responses]
    entries = [entry_from_proto(each.kvs[0]) if each.kvs else None for each in ranges]
    pairs = zip(compare, entries, strict=True)
    return [condition for condition, entry in pairs if not condition.holds(entry)]


def watch_request(prefix: str, start_revision: int) -> Any:
    """Events of a prefix from a revision on, and a sign of progress now and then."""
    start = prefix.encode()
    return rpc.WatchRequest(
        create_request=rpc.WatchCreateRequest(
            key=start or b"\0",
            range_end=prefix_end(start),
            start_revision=start_revision,
            progress_notify=True,
        )
    )


def entry_from_proto(pair: Any) -> Entry:
    """An ``mvccpb.KeyValue``."""
    return Entry(
        key=pair.key.decode(),
        value=pair.value,
        create_revision=pair.create_revision,
        mod_revision=pair.mod_revision,
        lease_id=pair.lease,
    )


def event_from_proto(event: Any) -> Event:
    """An ``mvccpb.Event``."""
    deleted = event.type == rpc.Event.DELETE
    return Event(
        kind=EventKind.DELETE if deleted else EventKind.PUT,
        key=event.kv.key.decode(),
        revision=event.kv.mod_revision,
        entry=None if deleted else entry_from_proto(event.kv),
    )


def prefix_end(prefix: bytes) -> bytes:
    r"""The first key after all keys with a prefix; ``\0`` is etcd's word for no end."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def _compare_messages(compare: Compare) -> list[Any]:
    key = compare.key.encode()
    messages = []
    if compare.create_revision is not None:
        messages.append(
            rpc.Compare(
                key=key,
                target=rpc.Compare.CREATE,
                result=rpc.Compare.EQUAL,
                create_revision=compare.create_revision,
            )
        )
    if compare.mod_revision is not None:
        messages.append(
            rpc.Compare(
                key=key,
                target=rpc.Compare.MOD,
                result=rpc.Compare.EQUAL,
                mod_revision=compare.mod_revision,
            )
        )
    return messages
