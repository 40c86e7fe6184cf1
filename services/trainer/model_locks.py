"""Weights stand still while they are read aside.

A reallocation reads a model in a thread of its own while the engine's thread goes on with
calls of other models. Readers of a model wait until nobody changes it; a call that changes it
waits until nobody reads it. Reading has no end but the reader's own, so every wait has a deadline.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from realloc.core.errors import Unavailable


class ModelLocks:
    """Who reads and who changes which model of this shard. Thread-safe."""

    def __init__(self) -> None:
        self._turned = threading.Condition()
        self._readers: Counter[str] = Counter()
        self._changing: set[str] = set()

    @contextmanager
    def reading(self, model_id: str, timeout_seconds: float) -> Iterator[None]:
        """Keep a model as it is within the context.

        Raises:
            Unavailable: a call that changes it did not end in time.
        """
        with self._turned:
            self._wait(lambda: model_id not in self._changing, timeout_seconds, model_id, "changes")
            self._readers[model_id] += 1
        try:
            yield
        finally:
            with self._turned:
                self._readers[model_id] -= 1
                self._turned.notify_all()

    @contextmanager
    def changing(self, model_id: str, timeout_seconds: float) -> Iterator[None]:
        """Change a model within the context; one thread does so.

        Raises:
            Unavailable: a reallocation still reads it.
        """
        with self._turned:
            self._wait(lambda: not self._readers[model_id], timeout_seconds, model_id, "reads")
            self._changing.add(model_id)
        try:
            yield
        finally:
            with self._turned:
                self._changing.discard(model_id)
                self._turned.notify_all()

    def wait_unread(self, timeout_seconds: float) -> None:
        """Wait until no model is read.

        Raises:
            Unavailable: a reallocation still reads one.
        """
        with self._turned:
            self._wait(
                lambda: not self._readers.total(), timeout_seconds, "a model of the job", "reads"
            )

    def _wait(
        self, free: Callable[[], bool], timeout_seconds: float, model: str, what: str
    ) -> None:
        if not self._turned.wait_for(free, timeout_seconds):
            other = "a reallocation" if what == "reads" else "a call"
            raise Unavailable(f"{other} still {what} {model} after {timeout_seconds:g} s")
