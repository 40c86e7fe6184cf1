"""The echo service as a process of its own, for tests of signals.

python -m tests.integration.echo_main EVENTS_FILE [--field value …]
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from realloc.config import ServiceConfig, from_command_line
from realloc.rpc.server import App, serve
from tests.integration.echo_service import SERVICE, Echo, add_to_server

events = Path(sys.argv[1])


def note(event: str) -> None:
    """Append a line that the test reads."""
    with events.open("a") as file:
        file.write(event + "\n")


@asynccontextmanager
async def build(config: ServiceConfig) -> AsyncIterator[App]:
    """An app that notes each step of its life."""

    async def started(address: str) -> None:
        note(f"started {address}")

    async def draining() -> None:
        note("draining")

    @asynccontextmanager
    async def registration(address: str) -> AsyncIterator[None]:
        note(f"registered {address}")
        yield
        note("deregistered")

    note("built")
    if config.name == "slow-builder":
        try:
            await asyncio.Event().wait()
        finally:
            note("build cancelled")
    yield App(
        servicers=((add_to_server, Echo()),),
        service_names=(SERVICE,),
        started=started,
        registration=registration,
        draining=draining,
    )
    note("closed")


if __name__ == "__main__":
    asyncio.run(serve(build, from_command_line(ServiceConfig, sys.argv[2:])))
