"""The stores that the contract suites run against, and how coroutine tests are run."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer
from tests.contract.store_backends import EtcdBackend, MemoryBackend, StoreBackend

TEST_SECONDS = 180.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test on a loop of its own, with a deadline."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def run() -> None:
        try:
            async with asyncio.timeout(TEST_SECONDS):
                await pyfuncitem.obj(**arguments)
        finally:
            for argument in arguments.values():
                if isinstance(argument, StoreBackend):
                    await argument.close()

    asyncio.run(run())
    return True


@pytest.fixture(scope="session")
def etcd_binary() -> Path:
    """The etcd that tests start."""
    return find_etcd()


@pytest.fixture(scope="session")
def shared_etcd(
    etcd_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdServer]:
    """A server for the tests that do not hurt it."""
    with EtcdServer(etcd_binary, tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def own_etcd(etcd_binary: Path, tmp_path: Path) -> Iterator[EtcdServer]:
    """A server for one test, which may kill it."""
    with EtcdServer(etcd_binary, tmp_path) as server:
        yield server


@pytest.fixture(params=["memory", "etcd"])
def backend(request: pytest.FixtureRequest) -> StoreBackend:
    """Each implementation of the Store in turn."""
    if request.param == "memory":
        return MemoryBackend()
    return EtcdBackend(request.getfixturevalue("shared_etcd"))
