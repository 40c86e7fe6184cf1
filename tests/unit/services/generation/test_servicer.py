"""The generator's service over a toy engine: whose job it is."""

import asyncio
from pathlib import Path

from realloc.api.generation.v1 import generation_pb2 as pb
from realloc.shard.batches import BatchStore
from realloc.shard.transfer_service import TransferServicer
from services.generation.config import GenerationConfig
from services.generation.engine import EngineSpec
from services.generation.rollout_worker import RolloutWorker
from services.generation.servicer import GenerationServicer
from services.generation.transfers import GenerationTransfers
from tests.tiny_models import tiny_config_text, tiny_tokenizer


class ToyEngine:
    """Loads nothing."""

    def load(self, spec: EngineSpec) -> None: ...

    def abort_weights(self) -> None: ...

    def close(self) -> None: ...


def test_only_its_own_start_ends_a_job(tmp_path: Path) -> None:
    """A runner that was replaced ends nothing that its successor has begun."""
    tiny_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(tiny_config_text("llama"))

    async def scenario() -> None:
        worker = RolloutWorker(ToyEngine())  # type: ignore[arg-type]  # what a start needs
        weights = GenerationTransfers(worker)
        servicer = GenerationServicer(
            config=GenerationConfig(),
            worker=worker,
            batches=BatchStore(capacity_bytes=1),
            transfers=TransferServicer(weights),
            weights=weights,
        )
        start = pb.StartJobRequest(job_id="job", run_id="second", tokenizer=str(tmp_path))
        for ends, left in (("first", "job"), ("second", ""), ("", "")):
            await servicer.StartJob(start, None)
            await servicer.EndJob(pb.EndJobRequest(job_id="job", run_id=ends), None)
            assert servicer.job_id == left
        await worker.close()

    asyncio.run(scenario())
