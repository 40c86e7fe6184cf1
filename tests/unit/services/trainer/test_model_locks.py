"""Models that are read aside are not changed meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from realloc.core.errors import Unavailable
from services.trainer.model_locks import ModelLocks


def test_a_model_that_is_read_is_not_changed_and_others_are() -> None:
    """Its change waits for the last reader, and fails at its deadline."""
    locks = ModelLocks()
    with locks.reading("actor", 1), locks.reading("actor", 1):
        with (
            pytest.raises(Unavailable, match="a reallocation still reads actor after"),
            locks.changing("actor", 0.01),
        ):
            pass
        with locks.changing("critic", 1):
            pass
    with locks.changing("actor", 1):
        pass


def test_a_model_that_changes_is_read_afterwards() -> None:
    """A reader waits for the call; one that is late fails by name."""
    locks, changed = ModelLocks(), []

    def read() -> list[str]:
        with locks.reading("actor", 10):
            return list(changed)

    with ThreadPoolExecutor(1) as reader:
        with locks.changing("actor", 1):
            with (
                pytest.raises(Unavailable, match="a call still changes actor"),
                locks.reading("actor", 0.01),
            ):
                pass
            waiting = reader.submit(read)
            changed.append("new")
        assert waiting.result(10) == ["new"]


def test_the_end_of_a_job_waits_for_readers() -> None:
    """Nobody's model disappears while it is read."""
    locks, reading, leave = ModelLocks(), threading.Event(), threading.Event()

    def read() -> None:
        with locks.reading("actor", 10):
            reading.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as reader:
        done = reader.submit(read)
        assert reading.wait(10)
        with pytest.raises(Unavailable, match="still reads a model of the job"):
            locks.wait_unread(0.01)
        leave.set()
        done.result(10)
        locks.wait_unread(0)
