"""Rollouts of one job: prompts in, rewarded samples out as a batch."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from realloc.core.batch import Batch, RaggedArray
from realloc.core.settings import GenerationSettings
from realloc.shard.data_source import DataSource, scalars
from realloc.shard.tokenizer import Tokenizer
from services.generation.engine import Rollout, RolloutRequest
from services.generation.rewards import RewardFunction, RewardRow
from services.generation.rollout_worker import RolloutWorker

_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """Finished rollouts in the order of their prompts, samples of a prompt together."""

    batch: Batch
    sums: Mapping[str, float]
    """Sums over rollouts: ``reward``, ``response_tokens``, ``truncated``."""
    num_tokens: int
    """Prompt and response tokens."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutProgress:
    """How many rollouts have ended and were rewarded; the batch with the last."""

    num_finished: int
    num_rollouts: int
    result: RolloutBatch | None = None


@dataclass(slots=True)
class _Sample:
    row: dict[str, Any]
    prompt: tuple[int, ...]
    where: str
    rollout: Rollout | None = None
    reward: float = 0.0


@dataclass(slots=True)
class _Run:
    samples: dict[str, _Sample]
    scoring: set["asyncio.Task[None]"] = field(default_factory=set)
    num_rewarded: int = 0


class JobRollouts:
    """Samples and rewards for one job on this replica."""

    def __init__(
        self,
        *,
        worker: RolloutWorker,
        tokenizer: Tokenizer,
        data: DataSource,
        reward: RewardFunction | None,
    ) -> None:
        self._worker = worker
        self._tokenizer = tokenizer
        self._data = data
        self._reward = reward

    async def generate(
        self,
        *,
        path: str,
        rows: Sequence[int],
        settings: GenerationSettings,
        seed: int,
        prefix: str,
        timeout_seconds: float,
    ) -> AsyncGenerator[RolloutProgress, None]:
        """Sample every row; rewards are computed while other rollouts still run.

        Args:
            seed: the sample of a row depends on this, the row and its number only.
            prefix: makes request ids unique.
            timeout_seconds: until the last rollout.

        Raises:
            JobFailed: the reward function failed on a row, or the engine broke.
        """
        started = time.monotonic()
        samples = self._samples(path, rows, settings, prefix)
        requests = [
            _request(request_id, sample, settings, self._tokenizer, _seed(seed, request_id))
            for request_id, sample in samples.items()
        ]
        run = _Run(samples)
        reported = started
        try:
            stream = self._worker.generate(requests, timeout_seconds=timeout_seconds)
            async with aclosing(stream) as rollouts:
                async for rollout in rollouts:
                    self._finish(run, rollout)
                    if time.monotonic() - reported > _PROGRESS_SECONDS:
                        reported = time.monotonic()
                        yield RolloutProgress(
                            num_finished=run.num_rewarded, num_rollouts=len(samples)
                        )
            await asyncio.gather(*run.scoring)
        finally:
            for task in run.scoring:
                task.cancel()
            await asyncio.gather(*run.scoring, return_exceptions=True)
        result = self._result(list(samples.values()), time.monotonic() - started)
        yield RolloutProgress(num_finished=len(samples), num_rollouts=len(samples), result=result)

    def _samples(
        self, path: str, rows: Sequence[int], settings: GenerationSettings, prefix: str
    ) -> dict[str, _Sample]:
        samples = {}
        found = self._data.rows(path, rows)
        for position, (number, row) in enumerate(zip(rows, found, strict=True)):
            prompt = tuple(self._tokenizer.encode(row["prompt"]))
            for index in range(settings.samples_per_prompt):
                key = f"{prefix}/{position}/{number}/{index}"
                samples[key] = _Sample(row, prompt, f"in row {number} of {path}")
        return samples

    def _finish(self, run: _Run, rollout: Rollout) -> None:
        """Note a rollout and begin to reward it; an earlier failure is raised here."""
        sample = run.samples[rollout.request_id]
        sample.rollout = rollout
        run.scoring.add(asyncio.create_task(self._score(run, sample)))
        for task in [task for task in run.scoring if task.done()]:
            run.scoring.discard(task)
            task.result()

    async def _score(self, run: _Run, sample: _Sample) -> None:
        assert sample.rollout is not None
        if self._reward is not None:
            fields = {
                key: value
                for key, value in sample.row.items()
                if key not in ("prompt", "ground_truth")
            }
            (sample.reward,) = await self._reward.score(
                [
                    RewardRow(
                        prompt=sample.row["prompt"],
                        response=self._tokenizer.decode(list(sample.rollout.tokens)),
                        ground_truth=sample.row.get("ground_truth"),
                        fields=fields,
                        where=sample.where,
                    )
                ]
            )
        run.num_rewarded += 1

    def _result(self, samples: Sequence[_Sample], seconds: float) -> RolloutBatch:
        rollouts = [sample.rollout for sample in samples if sample.rollout is not None]
        assert len(rollouts) == len(samples)
        tokens = [
            np.array([*sample.prompt, *rollout.tokens], np.int32)
            for sample, rollout in zip(samples, rollouts, strict=True)
        ]
        logprobs = [np.array(rollout.logprobs, np.float32) for rollout in rollouts]
        fields = {
            "tokens": RaggedArray.from_rows(tokens, "int32"),
            "prompt_length": scalars([len(sample.prompt) for sample in samples], "int32"),
            "logprobs": RaggedArray.from_rows(logprobs, "float32"),
        }
        sums = {
            "response_tokens": float(sum(len(rollout.tokens) for rollout in rollouts)),
            "truncated": float(sum(rollout.finish_reason == "length" for rollout in rollouts)),
        }
        if self._reward is not None:
            fields["reward"] = scalars([sample.reward for sample in samples], "float32")
            sums["reward"] = float(sum(sample.reward for sample in samples))
        return RolloutBatch(
            batch=Batch(fields=fields),
            sums=sums,
            num_tokens=sum(map(len, tokens)),
            seconds=seconds,
        )


def _request(
    request_id: str,
    sample: _Sample,
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    seed: int,
) -> RolloutRequest:
    return RolloutRequest(
        request_id=request_id,
        prompt_tokens=sample.prompt,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
        stop_token_ids=tokenizer.eos_token_ids,
    )


def _seed(seed: int, request_id: str) -> int:
    """A seed of its own for each row and sample, whatever replica it runs on."""
    row_and_sample = "/".join(request_id.split("/")[-2:])
    return int.from_bytes(hashlib.sha256(f"{seed}/{row_and_sample}".encode()).digest()[:7])
