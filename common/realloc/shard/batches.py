"""Batches that this process made, kept until their job releases them."""

import threading
from collections.abc import Sequence

from realloc.core.batch import Batch, BatchReference
from realloc.core.errors import NotFound, ResourceExhausted


class BatchStore:
    """Named batches of this process. Thread-safe; bounded by bytes."""

    def __init__(self, *, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._batches: dict[tuple[str, int, str], Batch] = {}
        self._lock = threading.Lock()
        self.address = ""
        """``host:port`` under which peers pull; set once the server listens."""

    def put(self, *, job_id: str, iteration: int, call: str, batch: Batch) -> BatchReference:
        """Keep a batch; the reference names all of its rows.

        Raises:
            ResourceExhausted: the store would hold more bytes than its capacity.
        """
        with self._lock:
            held = sum(map(_size_bytes, self._batches.values())) + _size_bytes(batch)
            if held > self._capacity_bytes:
                raise ResourceExhausted(
                    f"batches would take {held} bytes and this shard keeps at most "
                    f"{self._capacity_bytes}; use a smaller data.batch_size"
                )
            self._batches[(job_id, iteration, call)] = batch
        main = batch.fields.get("tokens") or next(iter(batch.fields.values()))
        return BatchReference(
            address=self.address,
            key=f"{job_id}/{iteration}/{call}",
            fields=tuple(batch.fields),
            rows=tuple(range(batch.num_rows)),
            lengths=tuple(main.lengths.tolist()),
        )

    def get(self, key: str, fields: Sequence[str], rows: Sequence[int]) -> Batch:
        """Rows of a kept batch.

        Raises:
            NotFound: the batch, a field or a row is not here.
        """
        job_id, iteration, call = key.rsplit("/", 2)
        with self._lock:
            batch = self._batches.get((job_id, int(iteration), call))
        if batch is None:
            raise NotFound(f"batch {key} is not at {self.address}; it was released or never made")
        missing = [name for name in fields if name not in batch.fields]
        if missing:
            raise NotFound(f"batch {key} has no field {missing[0]!r}, only {list(batch.fields)}")
        if any(not 0 <= row < batch.num_rows for row in rows):
            raise NotFound(f"batch {key} has {batch.num_rows} rows; row {max(rows)} was asked for")
        return Batch(fields={name: batch.fields[name] for name in fields}).take(rows)

    def release(self, job_id: str, before_iteration: int = 0) -> None:
        """Drop a job's batches: those before an iteration, or all where it is 0."""
        with self._lock:
            for key in list(self._batches):
                if key[0] == job_id and (before_iteration == 0 or key[1] < before_iteration):
                    del self._batches[key]


def _size_bytes(batch: Batch) -> int:
    return sum(field.values.nbytes + field.lengths.nbytes for field in batch.fields.values())
