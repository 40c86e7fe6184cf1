"""etcd over mutual TLS: three real members, our client, and those who may not come in."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer
from realloc.config import ServiceConfig
from realloc.coordination.etcd_store import EtcdStore, store_of
from realloc.core.errors import Unauthenticated, Unavailable
from realloc.security.certificates import make_certificates
from realloc.security.tls import ETCD_NAME, ChannelSecurity, client_security, peer_security

SECONDS = 240.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    for name in ("ours", "strangers"):
        make_certificates(folder / name)
    return folder


@pytest.fixture(scope="module")
def members(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[EtcdServer]]:
    tls_dir = certificates / "ours" / "etcd"
    servers = EtcdServer.cluster(find_etcd(), tmp_path_factory.mktemp("etcd"), 3, tls_dir=tls_dir)
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.close()


def within(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await work()

    asyncio.run(limited())


def security(folder: Path, server_name: str = ETCD_NAME) -> ChannelSecurity:
    found = peer_security(str(folder), server_name=server_name)
    assert found is not None
    return found


def test_a_process_reads_writes_and_watches_while_members_die(
    certificates: Path, members: list[EtcdServer]
) -> None:
    """Over several endpoints at once, also when the member that it talks to is killed."""
    endpoints = [server.endpoint for server in members]

    async def work() -> None:
        trainer = security(certificates / "ours" / "trainer")
        async with EtcdStore(endpoints, security=trainer) as store:
            revision = await store.put("/tls/a", b"1")
            async with contextlib.aclosing(store.watch("/tls/", start_revision=revision)) as seen:
                assert (await anext(seen)).key == "/tls/a"
            for server in members:
                server.kill()
                for attempt in range(20):
                    try:
                        await store.put("/tls/b", server.member.name.encode())
                        break
                    except Unavailable:
                        assert attempt < 19
                server.start()
            found = await store.get("/tls/b")
            assert found is not None
            assert found.value == b"etcd-2"

    within(work)


def test_new_certificates_are_shown_at_once(
    certificates: Path, members: list[EtcdServer], tmp_path: Path
) -> None:
    """A store that is open changes its connection with its files; its watches go on."""
    tls_dir = tmp_path / "trainer"
    shutil.copytree(certificates / "ours" / "trainer", tls_dir)
    endpoints = [server.endpoint for server in members]

    def become(whose: str) -> None:
        shutil.copytree(certificates / whose / "trainer", tls_dir, dirs_exist_ok=True)

    async def work() -> None:
        mine = security(tls_dir)
        async with EtcdStore(endpoints, timeout_seconds=1.0, security=mine) as store:
            revision = await store.put("/tls/d", b"1", timeout_seconds=20.0)
            async with contextlib.aclosing(store.watch("/tls/d", start_revision=revision)) as seen:
                assert (await anext(seen)).revision == revision
                become("strangers")
                with pytest.raises(Unavailable):
                    await store.put("/tls/d", b"2")
                become("ours")
                last = await store.put("/tls/d", b"3", timeout_seconds=20.0)
                assert (await anext(seen)).revision == last

    within(work)


@pytest.mark.parametrize("who", ["nobody", "a stranger", "in the clear", "another server"])
def test_strangers_are_kept_out(certificates: Path, members: list[EtcdServer], who: str) -> None:
    """No certificate, one of another authority, no TLS; nor is just any server taken for etcd."""
    ours = certificates / "ours"
    found = {
        "nobody": replaced_name(client_security(ours / "client" / "ca.crt", "")),
        "a stranger": security(certificates / "strangers" / "trainer"),
        "in the clear": None,
        "another server": security(ours / "trainer", server_name="peer.realloc.internal"),
    }[who]

    async def work() -> None:
        endpoints = [server.endpoint for server in members]
        async with EtcdStore(endpoints, timeout_seconds=1.0, security=found) as store:
            with pytest.raises(Unavailable, match="etcd at"):
                await store.get("/tls/a")

    within(work)


@pytest.mark.parametrize(
    ("folder", "reason"), [("strangers", "not good"), ("mixed", "certificate"), ("ours", "")]
)
def test_a_process_that_etcd_refuses_says_so_at_its_start(
    certificates: Path, members: list[EtcdServer], tmp_path: Path, folder: str, reason: str
) -> None:
    """Which of both does not like the other, instead of a member that does not answer."""
    tls_dir = tmp_path / "trainer"
    shutil.copytree(certificates / folder.replace("mixed", "strangers") / "trainer", tls_dir)
    if folder == "mixed":
        shutil.copy(certificates / "ours" / "client" / "ca.crt", tls_dir)
    endpoints = tuple(server.endpoint for server in members)

    async def work() -> None:
        config = ServiceConfig(tls_dir=str(tls_dir), etcd_endpoints=endpoints)
        if not reason:
            async with store_of(config) as store:
                await store.put("/tls/c", b"1")
            return
        with pytest.raises(Unauthenticated, match=reason):
            async with store_of(config):
                pass

    within(work)


def replaced_name(security: ChannelSecurity) -> ChannelSecurity:
    return ChannelSecurity(
        server_name=ETCD_NAME, credentials=security.credentials, files=security.files
    )
