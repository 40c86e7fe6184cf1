"""Run a trainer shard: ``python -m services.trainer --help``."""

import asyncio

from realloc.config import from_command_line
from services.trainer.config import TrainerConfig


def main() -> None:
    config = from_command_line(TrainerConfig)  # before anything heavy is imported
    from realloc.rpc.server import serve
    from services.trainer.app import build

    asyncio.run(serve(build, config))


if __name__ == "__main__":
    main()
