"""Generation's formulas against engines that are played out row by row."""

import math
import random
from collections import deque
from dataclasses import replace
from statistics import fmean

import pytest

from realloc.cost.generation import (
    Replica,
    concurrent_rows,
    generation_seconds,
    prefill_seconds,
    step_seconds,
)
from realloc.cost.hardware import hardware_of
from realloc.cost.lengths import ResponseLengths
from realloc.cost.memory import cache_bytes_per_token
from tests.unit.cost.models import LLAMA_8B

REPLICA = Replica(architecture=LLAMA_8B, tensor=1, element_bytes=2, hardware=hardware_of("H100"))
PROMPT = 512
GIB = 2**30


def sampled(lengths: ResponseLengths, chance: random.Random) -> int:
    """A geometric length, cut at the limit."""
    if lengths.hazard == 0:
        return lengths.limit
    drawn = math.floor(math.log(1.0 - chance.random()) / -lengths.hazard) + 1
    return min(drawn, lengths.limit)


def played_seconds(rows: int, lengths: ResponseLengths, together: int, seed: int) -> float:
    """Decoding of rows with sampled lengths; a row that ends lets the next one in."""
    chance = random.Random(seed)
    waiting = deque(sampled(lengths, chance) for _ in range(rows))
    running: list[list[int]] = []  # [tokens made, length]
    seconds = 0.0
    while waiting or running:
        while waiting and len(running) < together:
            running.append([0, waiting.popleft()])
        context = fmean(PROMPT + made for made, _ in running)
        seconds += step_seconds(REPLICA, len(running), context)
        for row in running:
            row[0] += 1
        running = [row for row in running if row[0] < row[1]]
    return seconds


@pytest.mark.parametrize(
    ("rows", "mean", "limit", "gibibytes", "within"),
    [
        (64, 256, 256, 20, 0.02),  # all reach the limit, all fit
        (64, 100, 512, 20, 0.08),  # a tail
        (256, 100, 512, 20, 0.08),  # the same, 1,000s of tokens at once
        (400, 100, 512, 4, 0.10),  # rows wait for the cache
        (400, 256, 256, 4, 0.10),
    ],
)
def test_rollouts_take_what_playing_them_out_takes(
    rows: int, mean: int, limit: int, gibibytes: int, within: float
) -> None:
    """Mean and tail of the lengths, a cache that holds all rows or makes them wait: seconds of
    the formula against the mean of engines played out token by token."""
    lengths = ResponseLengths(mean=mean, limit=limit)
    cache = gibibytes * GIB
    together = int(concurrent_rows(REPLICA, PROMPT, lengths, cache))
    played = fmean(played_seconds(rows, lengths, together, seed) for seed in range(24))
    prefill = prefill_seconds(REPLICA, rows, PROMPT)
    estimated = generation_seconds(REPLICA, rows, PROMPT, lengths, cache)
    assert estimated == pytest.approx(prefill + played, rel=within)


def test_the_cache_holds_keys_and_values_of_every_layer() -> None:
    """Counted head by head: 2 × 32 layers × 8 heads × 128 numbers of two bytes per token."""
    numbers = sum(1 for _ in range(2) for _ in range(32) for _ in range(8)) * 128
    assert cache_bytes_per_token(LLAMA_8B, 1, 2) == 2 * numbers


def test_a_single_token_needs_no_decoding() -> None:
    """Responses of one token end with the prefill."""
    lengths = ResponseLengths(mean=1, limit=1)
    whole = generation_seconds(REPLICA, 32, PROMPT, lengths, 20 * GIB)
    assert whole == prefill_seconds(REPLICA, 32, PROMPT)


def test_an_engine_takes_no_more_rows_than_its_limit() -> None:
    """Whatever the cache holds, at most `decode_rows` decode at once."""
    few = replace(REPLICA, hardware=replace(REPLICA.hardware, decode_rows=16))
    lengths = ResponseLengths(mean=10, limit=10)
    assert concurrent_rows(few, PROMPT, lengths, 1e15) == 16
