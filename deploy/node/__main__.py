"""Run the shards of this node until SIGTERM: ``python -m deploy.node --help``."""

import asyncio
import signal
import sys

from deploy.node.config import NodeConfig
from realloc.config import from_command_line


def main() -> int:
    config = from_command_line(NodeConfig)
    from realloc.core.errors import ReallocError

    try:
        asyncio.run(_run(config))
    except ReallocError as error:
        print(f"node: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(config: NodeConfig) -> None:
    from deploy.node.agent import node

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with node(config, lambda text: print(f"node {config.node}: {text}", flush=True)):
        await stop.wait()
        print(f"node {config.node}: stopping", flush=True)


if __name__ == "__main__":
    sys.exit(main())
