"""Processes that tests start once per module and hand functions to."""

import multiprocessing as mp
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

START_SECONDS = 300.0


class RankProcesses:
    """A fixed number of fresh processes; each runs the functions it is sent, in order."""

    def __init__(self, num_ranks: int) -> None:
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self.processes = []
        for _ in range(num_ranks):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self.processes.append(process)
        self.run(_ready, [()] * num_ranks, timeout_seconds=START_SECONDS)

    def start(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """Have rank r run function(*arguments[r]); `results` collects."""
        for rank, argument in enumerate(arguments):
            self.start_one(rank, function, argument)

    def start_one(self, rank: int, function: Callable[..., Any], argument: tuple[Any, ...]) -> None:
        """Have one rank run function(*argument)."""
        self._pipes[rank].send((function, argument))

    def results(self, ranks: Sequence[int], *, timeout_seconds: float) -> list[Any]:
        """What ranks returned; raises what a rank raised."""
        return [self._result(rank, timeout_seconds) for rank in ranks]

    def run(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout_seconds: float = 120.0,
    ) -> list[Any]:
        """Run function(*arguments[r]) on rank r; the results by rank."""
        self.start(function, arguments)
        return self.results(range(len(arguments)), timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """End all processes that are left."""
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _result(self, rank: int, timeout_seconds: float) -> Any:
        if not self._pipes[rank].poll(timeout_seconds):
            raise TimeoutError(f"rank {rank} gave no result in {timeout_seconds} s")
        result, error = self._pipes[rank].recv()
        if error is not None:
            raise error
        return result


def _ready() -> None:
    import torch

    torch.set_num_threads(1)


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (function(*arguments), None)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = (None, error)
        pipe.send(answer)
