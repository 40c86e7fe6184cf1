"""Run a local cluster until Ctrl-C: ``python -m deploy.local --devices 2``."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from deploy.local.cluster import LocalCluster, LocalSettings
from realloc.core.errors import ReallocError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=2, help="devices (default 2)")
    parser.add_argument("--run-dir", type=Path, default=Path("run"), help="data, logs, traces")
    arguments = parser.parse_args()
    settings = LocalSettings(run_dir=arguments.run_dir, num_devices=arguments.devices)
    try:
        asyncio.run(_run(settings))
    except (ReallocError, RuntimeError) as error:
        print(f"local cluster: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(settings: LocalSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with LocalCluster(settings, _say) as cluster:
        _say("ready:")
        for name, address in cluster.endpoints.items():
            print(f"  {name:14} {address}", flush=True)
        _say("Ctrl-C stops it")
        await stop.wait()
        _say("stopping")
    _say("stopped")


def _say(text: str) -> None:
    print(f"local cluster: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
