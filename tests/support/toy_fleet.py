"""Toy shards and a real param-store, each a process that a test can hold in a phase and kill.

A shard halts where the test armed it: it says so through its pipe and waits to be let go or
killed. So every fault comes at a known point, without sleeps and without hooks in the services.
"""

import asyncio
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.coordination.store import Store
from tests.support.toy_shards import (
    PartyAround,
    toy_canonical,
    toy_parameters,
    toy_replica,
    toy_trainer,
)
from tests.support.toy_store import ARCHITECTURE, SOURCE, TARGET, member

START_SECONDS = 300.0
PHASES = ("prepare", "digest", "transfer", "transferred", "commit", "committed")
"""Where a shard can halt: asked to prepare, to digest, to execute, after it executed, to commit,
after it committed."""


class HaltingParty(PartyAround):
    """A party that halts in the armed phase, before it does what the phase is about."""

    def __init__(self, party: Any, gate: "Gate") -> None:
        super().__init__(party)
        self._gate = gate

    async def check(self, prepared: Any) -> Any:
        await self._gate.passes("prepare")
        return await self.party.check(prepared)

    async def digest(self, prepared: Any) -> Any:
        await self._gate.passes("digest")
        return await self.party.digest(prepared)

    async def execute(self, prepared: Any) -> Any:
        await self._gate.passes("transfer")
        reports = await self.party.execute(prepared)
        await self._gate.passes("transferred")
        return reports

    async def commit(self, prepared: Any, weight_version: int) -> None:
        await self._gate.passes("commit")
        await self.party.commit(prepared, weight_version)
        await self._gate.passes("committed")


class Gate:
    """Tells once when the shard is in the armed phase, and stops it there until it is opened."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._armed = ""
        self._open = asyncio.Event()

    def arm(self, phase: str, *, stops: bool = True) -> None:
        self._armed = phase
        if stops:
            self._open.clear()
        else:
            self._open.set()

    def open(self) -> None:
        self._armed = ""
        self._open.set()

    async def passes(self, phase: str) -> None:
        if phase == self._armed:
            self._armed = ""
            self._pipe.send(("reached", phase))
            await self._open.wait()


def serve_shard(pipe: Connection, name: str, rank: int) -> None:
    """The life of a toy shard's process."""
    torch.set_num_threads(1)
    asyncio.run(_serve_shard(pipe, name, rank))


async def _serve_shard(pipe: Connection, name: str, rank: int) -> None:
    gate = Gate(pipe)
    placed, serve = (SOURCE, toy_trainer) if name.startswith("trainer") else (TARGET, toy_replica)
    parameters = toy_parameters(ARCHITECTURE, placed.layout, rank, None)
    async with serve(name, parameters, lambda party: HaltingParty(party, gate)) as shard:
        pipe.send(("address", shard.address))
        while True:
            command, *arguments = await asyncio.to_thread(pipe.recv)
            if command == "train":
                new = toy_parameters(
                    ARCHITECTURE, placed.layout, rank, toy_canonical(ARCHITECTURE, arguments[0])
                )
                for key, value in new.items():
                    parameters[key].copy_(value)
                assert shard.trainer is not None
                shard.trainer.version = arguments[0]
                pipe.send(("trained", arguments[0]))
            elif command == "read":
                pipe.send(("held", {key: value.numpy() for key, value in parameters.items()}))
            elif command == "arm":
                gate.arm(arguments[0])
                pipe.send(("armed", arguments[0]))
            elif command == "tell":
                gate.arm(arguments[0], stops=False)
                pipe.send(("armed", arguments[0]))
            else:
                gate.open()


@dataclass(kw_only=True)
class ShardProcess:
    """A toy shard, as the test sees it."""

    name: str
    rank: int
    process: Any
    pipe: Connection
    incarnation: str

    def ask(self, *command: Any) -> Any:
        """Send a command and wait for its answer."""
        self.pipe.send(command)
        return self.receive()[1]

    def receive(self) -> tuple[str, Any]:
        """The next message.

        Raises:
            TimeoutError: none came.
        """
        if not self.pipe.poll(START_SECONDS):
            raise TimeoutError(f"{self.name} said nothing for {START_SECONDS} s")
        message: tuple[str, Any] = self.pipe.recv()
        return message

    def wait_reached(self) -> str:
        """The armed phase, once it is there."""
        kind, phase = self.receive()
        assert kind == "reached", kind
        return str(phase)

    def let_go(self) -> None:
        self.pipe.send(("go",))


class ToyFleet:
    """Four shards, a param-store and their names in etcd."""

    def __init__(self, etcd: str, folder: Path) -> None:
        self._etcd = etcd
        self._log = folder / "param_store.log"
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self.shards: dict[str, ShardProcess] = {}
        self._param_store: subprocess.Popen[bytes] | None = None
        self._addresses: dict[str, str] = {}

    def start(self) -> None:
        """Start whoever does not run, and wait until all are registered."""
        missing = [
            (name, rank)
            for placed in (SOURCE, TARGET)
            for rank, name in enumerate(placed.shards)
            if name not in self.shards
        ]
        for name, rank in missing:
            self.shards[name] = self._launch(name, rank)
        if self._param_store is None:
            self._launch_param_store()
        for name, _ in missing:
            kind, address = self.shards[name].receive()
            assert kind == "address"
            entry = member(name, address, self.shards[name].incarnation)
            asyncio.run(self._put(entry.key, entry.to_json()))
        asyncio.run(self._wait_param_store())

    def stop(self) -> None:
        """End every process."""
        for name in list(self.shards):
            self._end(name)
        if self._param_store is not None:
            self._param_store.kill()
            self._param_store.wait(60)

    def kill(self, name: str) -> None:
        """SIGKILL; its name leaves etcd as it would with its lease."""
        if name == "param_store":
            assert self._param_store is not None
            self._param_store.kill()
            self._param_store.wait(60)
            self._param_store = None
            asyncio.run(self._delete("/realloc/members/param_store/"))
            return
        key = member(name, "").key
        self._end(name)
        asyncio.run(self._delete(key))

    def train(self, version: int) -> None:
        """Let the trainers hold a version."""
        for name in SOURCE.shards:
            self.shards[name].ask("train", version)

    def held_version(self, name: str, versions: tuple[int, ...]) -> int:
        """Which of the versions a shard holds, all of it bit by bit; -1 for none of them."""
        shard = self.shards[name]
        placed = SOURCE if name in SOURCE.shards else TARGET
        held: Mapping[str, Any] = shard.ask("read")
        for version in versions:
            wanted = toy_parameters(
                ARCHITECTURE, placed.layout, shard.rank, toy_canonical(ARCHITECTURE, version)
            )
            if all(value.numpy().tobytes() == held[key].tobytes() for key, value in wanted.items()):
                return version
        return -1

    @property
    def param_store(self) -> str:
        """Address of the param-store that runs."""
        return self._addresses["param_store"]

    def _launch(self, name: str, rank: int) -> ShardProcess:
        here, there = self._context.Pipe()
        process = self._context.Process(target=serve_shard, args=(there, name, rank), daemon=True)
        process.start()
        there.close()
        return ShardProcess(
            name=name, rank=rank, process=process, pipe=here, incarnation=uuid.uuid4().hex
        )

    def _launch_param_store(self) -> None:
        options = {"etcd_endpoints": self._etcd, "drain_seconds": "0"}
        with self._log.open("ab") as log:
            self._param_store = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "services.param_store",
                    *(f"--{key}={value}" for key, value in options.items()),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def _end(self, name: str) -> None:
        shard = self.shards.pop(name)
        os.kill(shard.process.pid, signal.SIGKILL)
        shard.process.join(60)
        shard.pipe.close()

    async def _wait_param_store(self) -> None:
        async with EtcdStore((self._etcd,)) as store, Members(store) as members:
            found = await members.wait_for({"param_store": 1}, timeout_seconds=START_SECONDS)
        self._addresses = {each.name: each.address for each in found}

    async def _put(self, key: str, value: bytes) -> None:
        async with EtcdStore((self._etcd,)) as store:
            await store.put(key, value)

    async def _delete(self, prefix: str) -> None:
        async with EtcdStore((self._etcd,)) as store:
            await _delete_all(store, prefix)


async def _delete_all(store: Store, prefix: str) -> None:
    for entry in await store.list(prefix):
        await store.delete(entry.key)
