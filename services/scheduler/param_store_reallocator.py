"""Brings a model's weights to the replicas, by param-store."""

import asyncio
from collections.abc import Sequence

from realloc.api.param_store.v1 import param_store_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.experiment import Experiment
from realloc.core.job import ReallocationReport
from realloc.core.layout import Layout, LayoutKind
from realloc.core.plan import CallPlacement
from realloc.wire.convert import to_proto
from services.scheduler.shards import JobShards

_ANSWER_SECONDS = 15.0
"""How long after the deadline of a phase param-store may take to abort, and say who was late."""


class ParamStoreReallocator:
    """Asks param-store for the generation layout of a model."""

    def __init__(
        self,
        job_id: str,
        run_id: str,
        experiment: Experiment,
        shards: JobShards,
        placement: CallPlacement,
        *,
        frozen: Sequence[str],
    ) -> None:
        """
        Args:
            placement: where the model generates.
            frozen: tensors that never change; with some, only what has changed moves.
        """
        self._job_id = job_id
        self._run_id = run_id
        self._mode = param_store_pb2.TRANSFER_MODE_ALL
        if frozen:
            self._mode = param_store_pb2.TRANSFER_MODE_CHANGED
        self._experiment = experiment
        self._shards = shards
        self._layout = Layout(
            kind=LayoutKind.VLLM,
            strategy=placement.strategy,
            devices=tuple(placement.mesh.devices),
        )
        self._versions: dict[str, int] = {}
        self._early: dict[tuple[str, int], asyncio.Task[ReallocationReport]] = {}

    def start(self, model_id: str, weight_version: int) -> None:
        """Begin to reallocate a version that was just made; `bring` waits for it."""
        key = (model_id, weight_version)
        self._early[key] = asyncio.create_task(self._reallocate(*key), name=f"move {model_id}")

    async def bring(self, model_id: str, weight_version: int) -> ReallocationReport | None:
        """Reallocate where the layout does not have this version yet."""
        if self._versions.get(model_id) == weight_version:
            return None
        early = self._early.pop((model_id, weight_version), None)
        report = await (early or self._reallocate(model_id, weight_version))
        self._versions[model_id] = weight_version
        return report

    async def close(self) -> None:
        """End what was begun and nobody waited for."""
        for task in self._early.values():
            task.cancel()
        await asyncio.gather(*self._early.values(), return_exceptions=True)

    async def _reallocate(self, model_id: str, weight_version: int) -> ReallocationReport:
        tensor = self._layout.strategy.tensor
        owners = [
            self._layout.devices[rank // tensor * tensor]
            for rank in range(len(self._layout.devices))
        ]
        request = param_store_pb2.ReallocateRequest(
            # A job that recovers brings the versions of repeated iterations again.
            request_id=f"{self._job_id}/{self._run_id}/{model_id}/{weight_version}",
            job_id=self._job_id,
            model_id=model_id,
            target=to_proto(self._layout, types_pb2.Layout),
            shards=[self._shards.generators[device].member.name for device in owners],
            weight_version=weight_version,
            timeout_seconds=self._experiment.call_timeout_seconds,
            dtype=self._experiment.dtype,
            mode=self._mode,
        )
        response = await self._shards.param_store.Reallocate(
            request, timeout=self._experiment.call_timeout_seconds + _ANSWER_SECONDS
        )
        moved = response.reallocation
        return ReallocationReport(
            model_id=model_id,
            weight_version=moved.weight_version,
            bytes=moved.bytes,
            seconds=moved.seconds,
            digest_ok=moved.digest_ok,
        )
