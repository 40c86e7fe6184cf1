"""The trainer's service over a toy engine: which calls wait for whom."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from realloc.api.trainer.v1 import trainer_pb2 as pb
from realloc.api.types.v1 import types_pb2
from realloc.core.batch import Batch
from realloc.core.errors import Unavailable
from realloc.shard.batch_reader import BatchReader
from realloc.shard.batches import BatchStore
from realloc.shard.ordered_calls import OrderedCalls
from realloc.shard.transfer_service import TransferServicer
from services.trainer.engine import CallSettings, JobWorld, TrainResult
from services.trainer.model_locks import ModelLocks
from services.trainer.servicer import TrainerServicer


class ToyEngine:
    """Notes what it was asked to do."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.ended = False

    def start_job(self, world: JobWorld) -> None:
        self.ended = False

    def train(
        self, model_id: str, settings: CallSettings, mini_batches: Sequence[Batch]
    ) -> TrainResult:
        self.trained.append(model_id)
        return TrainResult(metrics={}, weight_version=1)

    def end_job(self) -> None:
        self.ended = True


def training(model_id: str, sequence: int) -> pb.RunTrainingRequest:
    settings = pb.CallSettings(loss="sft", ppo=types_pb2.PpoSettings())
    return pb.RunTrainingRequest(
        job_id="job", sequence=sequence, model_id=model_id, settings=settings
    )


def test_a_train_call_waits_for_readers_of_its_model_only() -> None:
    """While the actor is read the critic trains and the actor's call waits, up to its deadline."""

    async def scenario() -> None:
        engine, locks, abandoned = ToyEngine(), ModelLocks(), []
        calls, batches = OrderedCalls("test"), BatchStore(capacity_bytes=1)
        service = TrainerServicer(
            engine=engine,  # type: ignore[arg-type]
            calls=calls,
            locks=locks,
            batches=batches,
            reader=BatchReader(batches, timeout_seconds=1),
            transfers=TransferServicer(object()),  # type: ignore[arg-type]
            measure=lambda _: None,  # type: ignore[arg-type, return-value]
            abandon=abandoned.append,
        )
        context: Any = None
        await service.StartJob(pb.StartJobRequest(job_id="job", timeout_seconds=0.2), context)
        with locks.reading("actor", 1):
            await service.RunTraining(training("critic", 1), context)
            with pytest.raises(Unavailable, match="a reallocation still reads actor"):
                await service.RunTraining(training("actor", 2), context)
        await service.RunTraining(training("actor", 3), context)
        assert engine.trained == ["critic", "actor"]
        await service.EndJob(pb.EndJobRequest(job_id="job"), context)
        assert engine.ended
        assert not abandoned
        calls.close()

    asyncio.run(scenario())
