"""Rollouts by vLLM, in this process, with weights that are replaced in place.

Invariants:

- The engine starts with dummy weights; a rollout means something after the first commit.
- One engine per process at a time, and one thread that uses it.
- New weights are staged beside the live ones. A commit copies them over, names the new version
  and drops every key and value that was computed with the old ones, those of running requests
  too: these recompute theirs and go on.
"""

import gc
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realloc.core.errors import InvalidInput, JobFailed, Problem, raise_problems
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import ParameterSpec, TransferProgram, TransferSession
from realloc.transfer.executor import TransferReport
from services.generation.engine import EngineSpec, Rollout, RolloutRequest

_DTYPES = ("float32", "bfloat16")
_MAX_SEED = 2**63 - 1


class VllmEngine:
    """A `GenerationEngine`. vLLM is imported by `load`, in the thread that loads."""

    def __init__(
        self,
        *,
        name: str,
        transfer_host: str,
        first_device: int | None = None,
        staging_bytes: int = 256 << 20,
        rpc_timeout_seconds: float = 600.0,
    ) -> None:
        """Build nothing yet.

        Args:
            name: name of the shard, for errors.
            transfer_host: address of this machine that the sources of weights can connect to.
            first_device: global id of the device of rank 0, the other ranks follow; None
                where weights never come from a process on the same device.
            staging_bytes: most bytes of staging buffers of each rank, for new weights.
            rpc_timeout_seconds: longest that a call on the worker processes may take
                (tensor parallel engines only; with one rank the call is a plain one).
        """
        self._name = name
        self._transfer_host = transfer_host
        self._first_device = first_device
        self._staging_bytes = staging_bytes
        self._rpc_timeout_seconds = rpc_timeout_seconds
        self._spec: EngineSpec | None = None
        self._llm: Any = None

    def load(self, spec: EngineSpec) -> None:
        """Build an engine for this architecture; an equal one is kept, weights and all.

        Raises:
            InvalidInput: vLLM cannot build this model.
        """
        if spec == self._spec:
            return
        _check_spec(spec)
        self.close()
        prepare_environment()
        _hide_llvmlite()
        _check_cpu_limits(spec)
        self._llm = _build(spec)
        self._llm.llm_engine.set_weight_version("0")
        self._on_ranks(
            "realloc_open", self._transfer_host, self._name, self._first_device, self._staging_bytes
        )
        self._spec = spec

    def add(self, requests: Sequence[RolloutRequest]) -> None:
        """Queue requests; all of them, or none where one is wrong.

        Raises:
            InvalidInput: a prompt that is empty, too long or has unknown tokens; every
                problem at once.
        """
        engine = self._engine()
        raise_problems(
            problem
            for index, request in enumerate(requests)
            for problem in self._problems(f"requests[{index}]", request)
        )
        from vllm.inputs.engine import tokens_input

        for request in requests:
            engine.add_request(
                request.request_id,
                tokens_input(list(request.prompt_tokens)),
                _sampling_params(request),
            )

    def step(self) -> Sequence[Rollout]:
        """Advance all requests by one token; returns those that ended."""
        return [_rollout(output) for output in self._engine().step() if output.finished]

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests; ids that are not running are ignored."""
        if self._llm is not None:
            self._llm.llm_engine.abort_request(list(request_ids))

    def parameter_specs(self) -> Sequence[Mapping[str, ParameterSpec]]:
        """Per tensor-parallel rank: shape and element type of each parameter by vLLM name."""
        return self._on_ranks("realloc_specs")

    def stage_weights(
        self, session: TransferSession, programs: Sequence[TransferProgram]
    ) -> Sequence[TransferReport]:
        """Receive into shadow parameters; one program per tensor-parallel rank.

        Returns what each rank did, with the digest of each canonical tensor that it holds.
        After an error nothing is staged on any rank.
        """
        try:
            return self._on_ranks("realloc_stage", session, tuple(programs))
        except Exception:
            self.abort_weights()
            raise

    def commit_weights(self, weight_version: int) -> None:
        """Copy the shadow into the live parameters; drop the prefix cache."""
        self._on_ranks("realloc_commit")
        engine = self._engine()
        # Without this vLLM would reuse keys and values of the old weights. It refuses while
        # requests run, unless they are told to recompute theirs.
        if not engine.reset_prefix_cache(reset_running_requests=True):
            raise JobFailed("vLLM did not drop its prefix cache after new weights came")
        engine.set_weight_version(str(weight_version))

    def abort_weights(self) -> None:
        """Drop the shadow; the live parameters were never touched."""
        if self._llm is not None:
            self._on_ranks("realloc_abort")

    def close(self) -> None:
        """Free the engine and what it holds; another `load` may follow. Safe to call twice."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._spec is not None:
            self._on_ranks("realloc_close")
        llm, self._llm, self._spec = self._llm, None, None
        llm.llm_engine.engine_core.shutdown()
        del llm
        # The engine and its model are in reference cycles: collected before the process
        # groups go, their memory is free when the next engine starts.
        gc.collect()
        cleanup_dist_env_and_memory()

    def _engine(self) -> Any:
        if self._llm is None:
            raise JobFailed("the generation engine has no model yet")
        return self._llm.llm_engine

    def _on_ranks(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension on every rank; the first error is raised."""
        outcomes = self._engine().collective_rpc(
            method, timeout=self._rpc_timeout_seconds, args=args
        )
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [outcome.value for outcome in outcomes]

    def _problems(self, path: str, request: RolloutRequest) -> list[Problem]:
        assert self._spec is not None
        limit, vocabulary = self._spec.max_model_len, self._llm.model_config.get_vocab_size()
        length = len(request.prompt_tokens)
        problems = []
        if not length:
            problems.append(Problem(f"{path}.prompt_tokens", "is empty"))
        elif not 0 <= min(request.prompt_tokens) <= max(request.prompt_tokens) < vocabulary:
            problems.append(
                Problem(f"{path}.prompt_tokens", f"has ids outside the vocabulary of {vocabulary}")
            )
        if request.max_new_tokens < 1 or length + request.max_new_tokens > limit:
            problems.append(
                Problem(
                    f"{path}.max_new_tokens",
                    f"is {request.max_new_tokens} after a prompt of {length} tokens; the engine "
                    f"holds {limit}",
                )
            )
        if request.temperature < 0:
            problems.append(Problem(f"{path}.temperature", f"is {request.temperature}"))
        return problems


def prepare_environment() -> None:
    """Set what vLLM reads at import. Call it before anything imports vllm; again is harmless."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine steps in our thread
        VLLM_WORKER_MULTIPROC_METHOD="spawn",  # forking a process with threads can deadlock
    )
    defaults = {
        # An engine's ranks are processes of one machine: nothing of it listens elsewhere.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # A second thread per process on a busy machine spins at barriers: 100 times slower.
        "OMP_NUM_THREADS": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import torch

    if not torch.cuda.is_available():
        # Two engines would else be pinned to the same core, and tensor parallel ones not start.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        if "vllm" not in sys.modules:
            torch.set_num_threads(1)


def _hide_llvmlite() -> None:
    """Let vLLM build an engine in a process that has imported numba.

    vLLM for CPU looks for Triton kernels in the ``__dict__`` of every object of every imported
    module. llvmlite's library object has none but answers for any attribute with a function of
    that name, and the search ends in an AttributeError.
    """
    from llvmlite.binding import ffi  # type: ignore[import-untyped]  # ships no types

    ffi.lib._fntab.setdefault("__dict__", {})


def _check_spec(spec: EngineSpec) -> None:
    problems = []
    try:
        config = json.loads(spec.hf_config)
        if not isinstance(config, dict) or not config.get("architectures"):
            problems.append(Problem("hf_config", "names no architectures"))
    except ValueError as error:
        problems.append(Problem("hf_config", f"is not JSON: {error}"))
    for name in ("tensor_parallel", "max_model_len", "kv_cache_bytes"):
        if getattr(spec, name) < 1:
            problems.append(Problem(name, f"is {getattr(spec, name)} and must be positive"))
    if spec.dtype not in _DTYPES:
        problems.append(Problem("dtype", f"is {spec.dtype!r}; use {' or '.join(_DTYPES)}"))
    raise_problems(problems)


def _check_cpu_limits(spec: EngineSpec) -> None:
    """Refuse what vLLM would build on a CPU and then die of, or compute wrongly."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    if not current_platform.is_cpu():
        return
    architecture = ModelArchitecture.from_hf_config(json.loads(spec.hf_config))
    size, supported = architecture.head_dim, CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        sizes = ", ".join(map(str, supported))
        raise InvalidInput.at("head_dim", f"is {size}; vLLM's CPU attention supports {sizes}")
    if architecture.num_experts:
        raise InvalidInput.at(
            "num_experts",
            f"is {architecture.num_experts}; vLLM packs the weights of experts for its CPU "
            "kernels, so that new ones cannot take their place; use a GPU",
        )


def _build(spec: EngineSpec) -> Any:
    import torch
    from vllm import LLM

    dtype: Any = spec.dtype  # vLLM's type is a list of literals
    with tempfile.TemporaryDirectory(prefix="realloc-engine-") as folder:
        Path(folder, "config.json").write_text(spec.hf_config)
        try:
            return LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",  # sampling is what the request says, nothing else
                dtype=dtype,
                seed=spec.seed & 0xFFFF_FFFF,
                tensor_parallel_size=spec.tensor_parallel,
                distributed_executor_backend="uni" if spec.tensor_parallel == 1 else "mp",
                max_model_len=spec.max_model_len,
                kv_cache_memory_bytes=spec.kv_cache_bytes,
                # Only checked, not used, as the cache has its size: the trainer lives on the
                # same device.
                gpu_memory_utilization=0.05,
                logprobs_mode="processed_logprobs",  # of what was sampled from
                enforce_eager=not torch.cuda.is_available(),
                # Triton's kernels read the weights of experts as they were loaded; others have
                # them shuffled first, and new ones could not take their place.
                moe_backend="triton" if torch.cuda.is_available() else "auto",
                worker_extension_cls="services.generation.vllm_worker.WorkerExtension",
            )
        except (ValueError, NotImplementedError) as error:
            raise InvalidInput.at("hf_config", f"vLLM cannot build this model: {error}") from error


def _sampling_params(request: RolloutRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        max_tokens=request.max_new_tokens,
        seed=request.seed & _MAX_SEED,  # vLLM takes -1 for no seed
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=True,  # the request says where to stop
        logprobs=0,  # of the sampled token only
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _rollout(output: Any) -> Rollout:
    completion = output.outputs[0]
    if completion.finish_reason not in ("stop", "length"):
        raise JobFailed(f"vLLM ended a rollout with {completion.finish_reason!r}")
    tokens = tuple(completion.token_ids)
    return Rollout(
        request_id=output.request_id,
        tokens=tokens,
        logprobs=tuple(
            entry[token].logprob for token, entry in zip(tokens, completion.logprobs, strict=True)
        ),
        finish_reason=completion.finish_reason,
        weight_version=int(completion.weight_versions[0].version),
    )
