"""Keeps the shards of one node running: ``srun … python -m deploy.slurm.node RUN_DIR ETCD``."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from deploy.local.supervisor import Supervised
from deploy.slurm.addresses import address_towards
from deploy.slurm.programs import Place, shard_programs
from deploy.slurm.settings import read_settings


def main() -> int:
    run_dir, etcd = Path(sys.argv[1]), tuple(sys.argv[2].split(","))
    return asyncio.run(_run(run_dir, etcd))


async def _run(run_dir: Path, etcd: tuple[str, ...]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = read_settings(run_dir)
    place = Place(host=address_towards(etcd[0]), etcd_endpoints=etcd)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [each for each in visible.split(",") if each]
    if settings.gpus_per_node > len(gpus):
        print(f"{settings.gpus_per_node} GPUs wanted here and Slurm gave {gpus}", flush=True)
        return 1
    shards = [
        Supervised(program, _say)
        for program in shard_programs(settings, place, int(os.environ["SLURM_NODEID"]), gpus)
    ]
    await asyncio.gather(*(each.start() for each in shards))
    await stop.wait()
    await asyncio.gather(*(each.stop() for each in shards))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
