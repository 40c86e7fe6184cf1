"""Calls of minutes on every trainer, which tell how far they are."""

from collections.abc import Sequence
from typing import Any

from services.scheduler.function_calls import Progress
from services.scheduler.shards import TrainerShard
from services.scheduler.together import together


async def follow_calls(
    what: str,
    method: str,
    requests: Sequence[tuple[TrainerShard, Any]],
    *,
    progress: Progress,
    timeout_seconds: float,
) -> None:
    """Make a streaming call on each trainer, and tell how far all of them are together.

    Args:
        what: begins what is told: ``building actor`` becomes ``building actor 43%``.
        method: of the trainer's service; its responses have ``done`` and ``total``.
    """
    done = dict.fromkeys(range(len(requests)), (0, 0))

    async def one(number: int, shard: TrainerShard, message: Any) -> None:
        async for step in getattr(shard.trainer, method)(message, timeout=timeout_seconds):
            done[number] = step.done, step.total
            total = sum(total for _, total in done.values())
            if total:
                part = sum(so_far for so_far, _ in done.values()) / total
                progress(f"{what} {part:.0%}")

    await together(one(number, *each) for number, each in enumerate(requests))
