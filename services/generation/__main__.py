"""Run a generation replica: ``python -m services.generation --help``."""

import asyncio

from realloc.config import from_command_line
from services.generation.config import GenerationConfig


def main() -> None:
    config = from_command_line(GenerationConfig)  # before anything heavy is imported
    from realloc.rpc.server import serve
    from services.generation.app import build

    asyncio.run(serve(build, config))


if __name__ == "__main__":
    main()
