"""Run the scheduler: ``python -m services.scheduler --help``."""

import asyncio

from realloc.config import from_command_line
from services.scheduler.config import SchedulerConfig


def main() -> None:
    config = from_command_line(SchedulerConfig)  # before anything heavy is imported
    from realloc.rpc.server import serve
    from services.scheduler.app import build

    asyncio.run(serve(build, config))


if __name__ == "__main__":
    main()
