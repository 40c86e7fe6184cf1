"""Shards whose engines only hold parameters; all that moves and switches weights is real.

A toy trainer is `TrainerTransfers` over parameters in place of Megatron; a toy replica is
`GenerationTransfers` and `RolloutWorker` over a `WeightReceiver` in place of vLLM. Both are
served by the real `TransferServicer` over gRPC.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
import torch

from realloc.api.shard.v1 import shard_pb2_grpc
from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import ParameterSpec, TransferProgram, TransferSession
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.reference import fill
from realloc.rpc.interception import Around
from realloc.rpc.server import SERVER_OPTIONS
from realloc.rpc.server_errors import translated_errors
from realloc.shard.transfer_service import TransferParty, TransferServicer
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport
from services.generation.rollout_worker import RolloutWorker
from services.generation.transfers import GenerationTransfers
from services.generation.weight_receiver import WeightReceiver
from services.trainer.model_locks import ModelLocks
from services.trainer.transfers import TrainerTransfers

HOST = "127.0.0.1"
Parameters = dict[str, torch.Tensor]


def toy_canonical(
    architecture: ModelArchitecture, version: int, frozen: Sequence[str] = ()
) -> list[np.ndarray[Any, Any]]:
    """Random weights of a version; tensors that are named as frozen are those of version 0."""
    return [
        np.random.default_rng([0 if tensor.name in frozen else version, index])
        .standard_normal(tensor.shape)
        .astype(np.float32)
        for index, tensor in enumerate(canonical_tensors(architecture))
    ]


def toy_parameters(
    architecture: ModelArchitecture,
    layout: Layout,
    rank: int,
    canonical: Sequence[np.ndarray[Any, Any]] | None,
    dtype: torch.dtype = torch.float32,
) -> Parameters:
    """A rank's parameters with given weights; zeros where there are none, and in padding."""
    table = local_parameters(architecture, layout, rank)
    arrays = [np.zeros(parameter.shape, np.float32) for parameter in table.parameters]
    if canonical is not None:
        fill(table.blocks, arrays, canonical)
    return {
        parameter.name: torch.from_numpy(array).to(dtype)
        for parameter, array in zip(table.parameters, arrays, strict=True)
    }


class PartyAround:
    """A party that does what the one within does, but for what a subclass does."""

    def __init__(self, party: TransferParty) -> None:
        self.party = party

    def __getattr__(self, name: str) -> Any:
        return getattr(self.party, name)


class ToyTrainerEngine:
    """Holds parameters as a trainer's engine does."""

    def __init__(self, parameters: Parameters) -> None:
        self.held = parameters
        self.version = 0

    def weight_version(self, model_id: str) -> int:
        return self.version

    def parameters(self, model_id: str) -> Parameters:
        return self.held


class ToyGenerationEngine:
    """Holds parameters as a replica's engine does; makes no tokens."""

    def __init__(self, parameters: Parameters, name: str) -> None:
        self.held = parameters
        self.weight_version = -1
        self._receiver = WeightReceiver(
            parameters, transfer_host=HOST, name=name, device=_device(name)
        )

    def parameter_specs(self) -> Sequence[Mapping[str, ParameterSpec]]:
        return [self._receiver.specs()]

    def stage_weights(
        self, session: TransferSession, programs: Sequence[TransferProgram]
    ) -> Sequence[TransferReport]:
        return [self._receiver.stage(session, programs[0])]

    def commit_weights(self, weight_version: int) -> None:
        self._receiver.commit()
        self.weight_version = weight_version

    def abort_weights(self) -> None:
        self._receiver.abort()

    def close(self) -> None:
        self._receiver.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyShard:
    """A shard that is served."""

    address: str
    parameters: Parameters
    """Live."""
    trainer: ToyTrainerEngine | None
    """A trainer's engine."""
    locks: ModelLocks
    weight_version: Any
    """Asks a replica's version."""


@asynccontextmanager
async def toy_trainer(
    name: str, parameters: Parameters, around: Any = lambda party: party
) -> AsyncIterator[ToyShard]:
    """Serve a trainer; `around` may wrap its party."""
    engine, locks = ToyTrainerEngine(parameters), ModelLocks()
    endpoint = TransferEndpoint(HOST, name, device=_device(name))
    party = TrainerTransfers(engine, endpoint, locks)  # type: ignore[arg-type]
    try:
        async with _served(around(party)) as address:
            yield ToyShard(
                address=address,
                parameters=parameters,
                trainer=engine,
                locks=locks,
                weight_version=lambda: engine.version,
            )
    finally:
        party.close()
        endpoint.close()


@asynccontextmanager
async def toy_replica(
    name: str, parameters: Parameters, around: Any = lambda party: party
) -> AsyncIterator[ToyShard]:
    """Serve a generation replica; `around` may wrap its party."""
    engine = ToyGenerationEngine(parameters, name)
    worker = RolloutWorker(engine)  # type: ignore[arg-type]
    try:
        async with _served(around(GenerationTransfers(worker))) as address:
            yield ToyShard(
                address=address,
                parameters=parameters,
                trainer=None,
                locks=ModelLocks(),
                weight_version=lambda: engine.weight_version,
            )
    finally:
        await worker.close()


def _device(name: str) -> int:
    """``trainer-1`` and ``generation-1`` own device 1 together: they share memory."""
    return int(name.partition("-")[2])


@asynccontextmanager
async def _served(party: TransferParty) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=(Around(translated_errors),), options=SERVER_OPTIONS)
    shard_pb2_grpc.add_TransferServiceServicer_to_server(TransferServicer(party), server)
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    try:
        yield f"{HOST}:{port}"
    finally:
        await server.stop(0)
