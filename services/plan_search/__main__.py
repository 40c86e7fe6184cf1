"""Run plan-search: ``python -m services.plan_search --help``."""

import asyncio

from realloc.config import from_command_line
from services.plan_search.config import PlanSearchConfig


def main() -> None:
    config = from_command_line(PlanSearchConfig)  # before anything heavy is imported
    from realloc.rpc.server import serve
    from services.plan_search.app import build

    asyncio.run(serve(build, config))


if __name__ == "__main__":
    main()
