"""Keeps a node's shards running: ``srun … python -m deploy.slurm.node RUN_DIR ETCD CERTS``."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from deploy.local.supervisor import Supervised
from deploy.slurm.programs import Place, shard_programs
from deploy.slurm.settings import SlurmSettings, read_settings
from realloc.addresses import address_towards, host_of


def main() -> int:
    run_dir, etcd, certificates = sys.argv[1], tuple(sys.argv[2].split(",")), sys.argv[3]
    host = address_towards(host_of(etcd[0]))
    if host is None:
        print(f"no route from here to etcd at {etcd[0]}", flush=True)
        return 1
    place = Place(
        host=host,
        etcd_endpoints=etcd,
        certificates=Path(certificates) if certificates else None,
    )
    return asyncio.run(_run(read_settings(Path(run_dir)), place))


async def _run(settings: SlurmSettings, place: Place) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
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
