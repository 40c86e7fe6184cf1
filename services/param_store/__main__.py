"""Run the param-store: ``python -m services.param_store --help``."""

import asyncio

from realloc.config import from_command_line
from services.param_store.config import ParamStoreConfig


def main() -> None:
    config = from_command_line(ParamStoreConfig)  # before anything heavy is imported
    from realloc.rpc.server import serve
    from services.param_store.app import build

    asyncio.run(serve(build, config))


if __name__ == "__main__":
    main()
