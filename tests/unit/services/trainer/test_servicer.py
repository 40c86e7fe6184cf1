"""The trainer's service over a toy engine: which calls wait for whom."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from realloc.api.trainer.v1 import trainer_pb2 as pb
from realloc.api.types.v1 import types_pb2
from realloc.core.batch import Batch
from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.layout import Layout, LayoutKind
from realloc.core.strategy import ParallelStrategy
from realloc.shard.batch_reader import BatchReader
from realloc.shard.batches import BatchStore
from realloc.shard.ordered_calls import OrderedCalls
from realloc.shard.transfer_service import TransferServicer
from realloc.wire.convert import to_proto
from services.trainer.call_inputs import CallInputs
from services.trainer.engine import CallSettings, JobWorld, ModelSpec, TrainResult
from services.trainer.job_calls import JobCalls
from services.trainer.model_locks import ModelLocks
from services.trainer.progress import Progress
from services.trainer.servicer import TrainerServicer
from tests.tiny_models import tiny_config_text, tiny_tokenizer


class ToyEngine:
    """Notes what it was asked to do."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.ended = False

    def start_job(self, world: JobWorld) -> None:
        self.ended = False

    def create_model(self, spec: ModelSpec, progress: Progress) -> None:
        progress(1, 4)
        progress(4, 4)

    def save_checkpoint(self, model_id: str, folder: str, source: str, progress: Progress) -> None:
        raise InvalidInput.at("folder", f"{folder} cannot be written")

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


@asynccontextmanager
async def serving(engine: ToyEngine, locks: ModelLocks) -> AsyncIterator[TrainerServicer]:
    """A service in a job whose deadline is short; nothing may break the process."""
    abandoned: list[str] = []
    calls, batches = OrderedCalls("test"), BatchStore(capacity_bytes=1)
    job = JobCalls(engine=engine, calls=calls, locks=locks, abandon=abandoned.append)  # type: ignore[arg-type]
    service = TrainerServicer(
        engine=engine,  # type: ignore[arg-type]
        job=job,
        inputs=CallInputs(job, BatchReader(batches, timeout_seconds=1)),
        locks=locks,
        batches=batches,
        transfers=TransferServicer(object()),  # type: ignore[arg-type]
        measure=lambda _: None,  # type: ignore[arg-type, return-value]
    )
    await service.StartJob(pb.StartJobRequest(job_id="job", timeout_seconds=0.2), None)
    yield service
    await service.EndJob(pb.EndJobRequest(job_id="job"), None)
    assert engine.ended
    assert not abandoned
    calls.close()


def test_long_calls_stream_how_far_they_are(tmp_path: Path) -> None:
    """The last message has all of it; an error of the engine ends the stream and its turn."""
    tiny_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(tiny_config_text("llama"))
    layout = Layout(kind=LayoutKind.MEGATRON, strategy=ParallelStrategy(), devices=(0,))

    async def scenario() -> None:
        async with serving(ToyEngine(), ModelLocks()) as service:
            create = pb.CreateModelRequest(
                job_id="job",
                sequence=1,
                model_id="actor",
                hf_config=tiny_config_text("llama"),
                head=types_pb2.HEAD_LM,
                layout=to_proto(layout, types_pb2.Layout),
                tokenizer=str(tmp_path),
            )
            steps = [(step.done, step.total) async for step in service.CreateModel(create, None)]
            assert steps[-1] == (4, 4)
            save = pb.SaveCheckpointRequest(
                job_id="job", sequence=2, model_id="actor", folder="/full"
            )
            with pytest.raises(InvalidInput, match="/full cannot be written"):
                async for _ in service.SaveCheckpoint(save, None):
                    pass
            await service.RunTraining(training("actor", 3), None)

    asyncio.run(scenario())


def test_a_train_call_waits_for_readers_of_its_model_only() -> None:
    """While the actor is read the critic trains and the actor's call waits, up to its deadline."""

    async def scenario() -> None:
        engine, locks = ToyEngine(), ModelLocks()
        async with serving(engine, locks) as service:
            with locks.reading("actor", 1):
                await service.RunTraining(training("critic", 1), None)
                with pytest.raises(Unavailable, match="a reallocation still reads actor"):
                    await service.RunTraining(training("actor", 2), None)
            await service.RunTraining(training("actor", 3), None)
            assert engine.trained == ["critic", "actor"]

    asyncio.run(scenario())
