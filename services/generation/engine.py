"""What the generation service asks of an engine. One thread owns it; see each method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from realloc.core.transfer import ParameterSpec, TransferProgram, TransferSession
from realloc.transfer.executor import TransferReport


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An engine for one architecture; weights arrive by reallocation."""

    hf_config: str
    """Text of the Hugging Face ``config.json``."""
    tensor_parallel: int
    max_model_len: int
    """Longest prompt plus response in tokens."""
    dtype: str
    """``float32`` or ``bfloat16``."""
    kv_cache_bytes: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One prompt to continue."""

    request_id: str
    prompt_tokens: tuple[int, ...]
    temperature: float
    max_new_tokens: int
    seed: int
    """Makes the sample independent of what else is in the batch."""
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A finished continuation."""

    request_id: str
    tokens: tuple[int, ...]
    """Response tokens, the stop token included."""
    logprobs: tuple[float, ...]
    """Of each response token, under the distribution that was sampled from; of a greedy
    rollout (temperature 0) under the one at temperature 1."""
    finish_reason: str
    """``stop`` or ``length``."""
    weight_version: int
    """Of the first token's weights; a commit while it ran gives later tokens newer ones."""


class GenerationEngine(Protocol):
    """Continues prompts; takes new weights in two steps, stage and commit."""

    def load(self, spec: EngineSpec) -> None:
        """Build an engine for this architecture; an equal one is kept, weights and all."""
        ...

    def add(self, requests: Sequence[RolloutRequest]) -> None:
        """Queue requests, or none of them where one is wrong (`InvalidInput`)."""
        ...

    def step(self) -> Sequence[Rollout]:
        """Advance all requests by one token; returns those that ended."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests; ids that are not running are ignored."""
        ...

    def parameter_specs(self) -> Sequence[Mapping[str, ParameterSpec]]:
        """Per tensor-parallel rank: shape and element type of each parameter by vLLM name."""
        ...

    def stage_weights(
        self, session: TransferSession, programs: Sequence[TransferProgram]
    ) -> Sequence[TransferReport]:
        """Receive into shadow parameters; one program per tensor-parallel rank.

        Returns what each rank did, with the digest of each canonical tensor that it holds.
        After an error nothing is staged on any rank.
        """
        ...

    def commit_weights(self, weight_version: int) -> None:
        """Copy the shadow into the live parameters; drop the prefix cache."""
        ...

    def abort_weights(self) -> None:
        """Drop the shadow; the live parameters were never touched."""
        ...

    def close(self) -> None:
        """Free everything; another `load` may follow. Safe to call twice."""
        ...
