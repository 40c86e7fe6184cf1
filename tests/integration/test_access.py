"""Every rpc of every service is shut to whoever has no right certificate or token."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.ports import ReservedPorts
from realloc.config import ServiceConfig
from realloc.core.errors import NotFound, PermissionDenied, ReallocError, Unauthenticated
from realloc.rpc.channel import connect
from realloc.rpc.channels import Channels
from realloc.rpc.server import App, running
from realloc.security.certificates import make_certificates
from realloc.security.roles import ALLOWED, CLIENT_SERVICE, PEOPLE, PROCESSES, Role, may_call
from realloc.security.tls import ChannelSecurity, client_security, peer_security
from realloc.security.tokens import TokenFile, create_token, revoke_token
from tests.support.deadline import within
from tests.support.every_rpc import METHODS, SERVICES, outcome

UNSERVED = next(each for each in METHODS if each.name == "SubmitJob")
"""A method that a server without servicers does not have."""


REACHED = "the door was open"


def reached(descriptor: ServiceDescriptor) -> Any:
    """A servicer, each method of which only says that the call came through."""

    async def answer(request: Any, context: Any) -> None:
        raise NotFound(REACHED)

    return SimpleNamespace(**{method.name: answer for method in descriptor.methods})


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Certificates and tokens of a cluster, and those of a stranger's."""

    ours: Path
    strangers: Path
    tokens: Path
    token_of: dict[str, str]

    def peer(self, holder: str) -> ChannelSecurity:
        found = peer_security(str(self.ours / holder))
        assert found is not None
        return found

    def client(self, token: str) -> ChannelSecurity:
        return client_security(self.ours / "client" / "ca.crt", token)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "strangers"):
        make_certificates(folder / name)
    tokens = folder / "tokens.json"
    token_of = {role.value: create_token(tokens, f"some-{role}", role) for role in PEOPLE}
    token_of["expired"] = create_token(tokens, "late", Role.OPERATOR, date(2020, 1, 1))
    return Keys(
        ours=folder / "ours", strangers=folder / "strangers", tokens=tokens, token_of=token_of
    )


@asynccontextmanager
async def serving(
    keys: Keys, holder: str, *, for_people: bool, health_port: int = 0
) -> AsyncIterator[str]:
    """All services on one port behind the door of a real server."""
    chosen = [each for each in SERVICES if (each[0].full_name == CLIENT_SERVICE) == for_people]
    app = App(
        servicers=[(add, reached(descriptor)) for descriptor, add in chosen],
        service_names=[descriptor.full_name for descriptor, _ in chosen],
        tokens=TokenFile(keys.tokens) if for_people else None,
    )
    config = ServiceConfig(
        tls_dir=str(keys.ours / holder), drain_seconds=0.0, health_port=health_port
    )
    async with running(app, config) as address:
        yield address


async def outcomes(
    address: str, security: ChannelSecurity | None, *, for_people: bool
) -> dict[str, ReallocError]:
    """How every method fails, by ``package.Service/Method``."""
    async with connect(address, security=security) as channel:
        return {
            f"{method.containing_service.full_name}/{method.name}": await outcome(channel, method)
            for method in METHODS
            if (method.containing_service.full_name == CLIENT_SERVICE) == for_people
        }


def test_every_service_is_in_the_table_of_roles() -> None:
    """A service without a row could be called by operators alone: it was forgotten."""
    assert set(ALLOWED) == {descriptor.full_name for descriptor, _ in SERVICES}
    assert len(METHODS) >= 30


def strangers_certificate(keys: Keys) -> ChannelSecurity:
    """Trusts our servers, and shows a scheduler's certificate of another authority."""
    stranger = peer_security(str(keys.strangers / "scheduler"))
    assert stranger is not None
    ours, files = keys.peer("scheduler").files(), stranger.files()
    mixed = replace(files, authority=ours.authority)
    return ChannelSecurity(
        server_name=stranger.server_name,
        credentials=lambda: grpc.ssl_channel_credentials(
            ours.authority, files.key, files.certificate
        ),
        files=lambda: mixed,
    )


@pytest.mark.parametrize("who", ["nobody", "a stranger", "in the clear"])
def test_without_a_certificate_of_the_authority_no_rpc_of_a_process_is_reached(
    keys: Keys, who: str
) -> None:
    """None, one of another authority, no TLS: UNAUTHENTICATED for every rpc."""
    security = {
        "nobody": replace(keys.client(""), server_name="peer.realloc.internal"),
        "a stranger": strangers_certificate(keys),
        "in the clear": None,
    }[who]

    async def work() -> None:
        async with serving(keys, "trainer", for_people=False) as address:
            found = await outcomes(address, security, for_people=False)
        assert {type(error) for error in found.values()} == {Unauthenticated}, found

    within(work)


@pytest.mark.parametrize("holder", [*PROCESSES, Role.OPERATOR, "etcd"])
def test_a_certificate_opens_what_its_role_may_call(keys: Keys, holder: str) -> None:
    """PERMISSION_DENIED for every rpc that the table does not give to the role."""

    async def work() -> None:
        async with serving(keys, "trainer", for_people=False) as address:
            found = await outcomes(address, keys.peer(holder), for_people=False)
        known = holder in set(Role)
        for method, error in found.items():
            allowed = known and may_call(Role(holder), method)
            assert type(error) is (NotFound if allowed else PermissionDenied), (method, error)

    within(work)


@pytest.mark.parametrize("token", ["", "realloc_wrong", "expired"])
def test_without_a_valid_token_no_rpc_of_the_scheduler_is_reached(keys: Keys, token: str) -> None:
    """None, an unknown one, one of yesterday: UNAUTHENTICATED for every rpc."""
    text = keys.token_of.get(token, token)

    async def work() -> None:
        async with serving(keys, "scheduler", for_people=True) as address:
            found = await outcomes(address, keys.client(text), for_people=True)
        assert {type(error) for error in found.values()} == {Unauthenticated}, found
        assert not any(text in str(error) for error in found.values() if text)

    within(work)


@pytest.mark.parametrize("role", PEOPLE)
def test_a_token_opens_what_its_role_may_call(keys: Keys, role: Role) -> None:
    """A viewer reads and nothing else; users and operators do all."""

    async def work() -> None:
        async with serving(keys, "scheduler", for_people=True) as address:
            found = await outcomes(address, keys.client(keys.token_of[role]), for_people=True)
        denied = {
            method.partition("/")[2]
            for method, error in found.items()
            if isinstance(error, PermissionDenied)
        }
        changing = {"SubmitJob", "CancelJob", "SaveJob", "PauseJob", "ResumeJob"}
        assert denied == (changing if role is Role.VIEWER else set())
        assert {str(each) for each in found.values() if isinstance(each, NotFound)} == {REACHED}

    within(work)


def test_a_client_tells_its_token_to_schedulers_only(keys: Keys) -> None:
    """A trainer that poses as a scheduler is refused before the token is sent."""

    async def work() -> None:
        async with serving(keys, "trainer", for_people=True) as address:
            found = await outcomes(address, keys.client(keys.token_of["user"]), for_people=True)
        assert {type(error) for error in found.values()} == {Unauthenticated}, found
        assert "certificate is not good" in str(next(iter(found.values())))

    within(work)


def test_health_needs_neither_token_nor_certificate(keys: Keys) -> None:
    """Probes ask the scheduler over TLS, and every service in the clear on its health port."""

    async def work() -> None:
        (port,) = ports.numbers
        request = health_pb2.HealthCheckRequest()
        async with (
            serving(keys, "trainer", for_people=False, health_port=port),
            connect(f"127.0.0.1:{port}") as channel,
        ):
            answer = await health_pb2_grpc.HealthStub(channel).Check(request)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert "UNIMPLEMENTED" in str(await outcome(channel, UNSERVED))
        async with (
            serving(keys, "scheduler", for_people=True) as address,
            connect(address, security=keys.client("")) as channel,
        ):
            answer = await health_pb2_grpc.HealthStub(channel).Check(request)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    with closing(ReservedPorts(1)) as ports:
        within(work)


def test_reflection_is_for_those_who_are_known(keys: Keys) -> None:
    """Whoever may call something may ask what there is; nobody else."""

    async def listed(security: ChannelSecurity, address: str) -> list[str]:
        async with connect(address, security=security) as channel:
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            return [
                each.name
                async for answer in stub.ServerReflectionInfo(iter([request]))
                for each in answer.list_services_response.service
            ]

    async def work() -> None:
        async with serving(keys, "scheduler", for_people=True) as address:
            assert CLIENT_SERVICE in await listed(keys.client(keys.token_of["viewer"]), address)
            with pytest.raises(Unauthenticated):
                await listed(keys.client(""), address)

    within(work)


def test_servers_show_new_certificates_without_a_restart(keys: Keys, tmp_path: Path) -> None:
    """After a change of authority, clients of the new one are let in and those of the old not."""
    shutil.copytree(keys.ours / "trainer", tmp_path / "trainer")

    async def work() -> None:
        config = ServiceConfig(tls_dir=str(tmp_path / "trainer"), drain_seconds=0.0)
        app = App(servicers=[], service_names=[])
        async with running(app, config) as address:
            assert "UNIMPLEMENTED" in str(await first_outcome(address, keys.peer("scheduler")))
            shutil.copytree(keys.strangers / "trainer", tmp_path / "trainer", dirs_exist_ok=True)
            old = await first_outcome(address, keys.peer("scheduler"))
            assert isinstance(old, Unauthenticated)
            stranger = peer_security(str(keys.strangers / "scheduler"))
            assert stranger is not None
            assert "UNIMPLEMENTED" in str(await first_outcome(address, stranger))

    within(work)


def test_kept_channels_show_new_certificates(keys: Keys, tmp_path: Path) -> None:
    """A process that gets another certificate shows it from the next call on."""
    mine = tmp_path / "mine"
    shutil.copytree(keys.ours / "trainer", mine)
    method = next(each for each in METHODS if each.name == "Reallocate")

    async def work() -> None:
        async with (
            serving(keys, "param_store", for_people=False) as address,
            Channels(peer_security(str(mine))) as channels,
        ):
            assert channels.get(address) is channels.get(address)
            assert isinstance(await outcome(channels.get(address), method), PermissionDenied)
            shutil.copytree(keys.ours / "scheduler", mine, dirs_exist_ok=True)
            assert isinstance(await outcome(channels.get(address), method), NotFound)

    within(work)


async def first_outcome(address: str, security: ChannelSecurity) -> ReallocError:
    """How the first of all rpcs fails over a new connection."""
    async with connect(address, security=security) as channel:
        return await outcome(channel, UNSERVED)


def test_a_revoked_token_is_refused_from_the_next_call_on(keys: Keys, tmp_path: Path) -> None:
    """The file of tokens is read again when it has changed; no restart."""
    mine = replace(keys, tokens=tmp_path / "tokens.json")
    text = create_token(mine.tokens, "ada", Role.USER)

    async def work() -> None:
        async with (
            serving(mine, "scheduler", for_people=True) as address,
            connect(address, security=mine.client(text)) as channel,
        ):
            method = next(each for each in METHODS if each.name == "SubmitJob")
            assert isinstance(await outcome(channel, method), NotFound)
            revoke_token(mine.tokens, "ada")
            assert isinstance(await outcome(channel, method), Unauthenticated)

    within(work)
