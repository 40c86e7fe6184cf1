"""A node's supervisor: which shards it starts, and what it says of their health."""

import asyncio
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import deploy.node.agent
from deploy.local.ports import ReservedPorts
from deploy.local.supervisor import Program
from deploy.node.agent import ALIVE, NOT_SERVING, SERVING, node
from deploy.node.config import NodeConfig
from deploy.node.shards import Shard, shards_of, visible_devices
from realloc.config import from_command_line
from realloc.plain_data import ConfigError
from services.generation.config import GenerationConfig
from services.trainer.config import TrainerConfig

TOY_SHARD = """
import asyncio, sys
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import grpc
async def main(port):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()
asyncio.run(main(sys.argv[1]))
"""


def test_a_node_has_a_trainer_and_a_replica_per_device():
    """Node 2 of nodes with four devices runs the shards of devices 8 to 11, each on own ports."""
    config = NodeConfig(node=2, devices_per_node=4, trainer_config="t", generation_config="g")
    shards = shards_of(config)
    assert [shard.program.name for shard in shards] == [
        *(f"trainer-{device}" for device in range(8, 12)),
        *(f"generation-{device}" for device in range(8, 12)),
    ]
    ports = [port_of(shard) for shard in shards] + [shard.health_port for shard in shards]
    assert len(set(ports)) == 16
    assert ports[:8] == [7100, 7101, 7102, 7103, 7200, 7201, 7202, 7203]


def test_a_node_may_run_trainers_alone():
    """Without a configuration for replicas there are none."""
    shards = shards_of(NodeConfig(devices_per_node=2, trainer_config="t"))
    assert [shard.program.name for shard in shards] == ["trainer-0", "trainer-1"]


def test_a_trainer_sees_one_device_and_a_replica_those_from_its_own_on():
    """CUDA_VISIBLE_DEVICES fits how many devices a shard may take."""
    assert visible_devices("trainer", 2, 4) == "2"
    assert visible_devices("generation", 2, 4) == "2,3"


@pytest.mark.parametrize(
    ("kind", "config_class"), [("trainer", TrainerConfig), ("generation", GenerationConfig)]
)
def test_the_options_of_a_shard_are_fields_of_its_configuration(kind, config_class, tmp_path):
    """What the supervisor passes on is taken by the service, and says device and node."""
    file = tmp_path / "shard.yaml"
    file.write_text("log_level: warning\n")
    config = NodeConfig(
        node=1, devices_per_node=2, trainer_config=str(file), generation_config=str(file)
    )
    shard = next(each for each in shards_of(config) if each.kind == kind)
    assert shard.program.command[:3] == [sys.executable, "-m", f"services.{kind}"]
    read = from_command_line(config_class, list(shard.program.command[3:]), environ={})
    assert (read.device, read.node, read.instance) == (2, 1, f"{kind}-2")
    assert (read.port, read.log_level) == (port_of(shard), "warning")


@pytest.mark.parametrize(
    "fields", [{"node": -1}, {"devices_per_node": 0}, {"devices_per_node": 101}, {}]
)
def test_a_wrong_node_is_refused(fields):
    """Impossible sizes, and a node without any shard, are errors before anything starts."""
    with pytest.raises(ConfigError):
        NodeConfig(**({"trainer_config": "t"} | fields if fields else {}))


def test_a_node_is_healthy_when_all_its_shards_are(monkeypatch):
    """Health follows the shards: not before all serve, not while one is down, again after its
    restart. The supervisor itself is alive throughout."""
    reserved = ReservedPorts(3)
    ports = reserved.numbers
    shards = tuple(toy_shard(f"toy-{index}", port) for index, port in enumerate(ports[:2]))
    monkeypatch.setattr(deploy.node.agent, "shards_of", lambda config: shards)
    monkeypatch.setattr(deploy.node.agent, "POLL_SECONDS", 0.05)
    notes: list[str] = []
    config = NodeConfig(trainer_config="t", health_port=ports[2])

    async def story() -> None:
        async with node(config, notes.append) as running:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports[2]}")
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            seen = [await watch.read()]
            while seen[-1].status != SERVING:
                seen.append(await watch.read())
            assert seen[0].status == NOT_SERVING
            assert running[0].pid is not None
            os.kill(running[0].pid, signal.SIGKILL)
            assert (await watch.read()).status == NOT_SERVING
            alive = await stub.Check(health_pb2.HealthCheckRequest(service=ALIVE), timeout=5)
            assert alive.status == SERVING
            assert (await watch.read()).status == SERVING
            watch.cancel()
            await channel.close()

    with closing(reserved):
        asyncio.run(story())
    assert any("waiting for toy-0" in note for note in notes)
    assert notes[-1] == "all 2 shards serve"


def toy_shard(name: str, port: int) -> Shard:
    """A process that answers for its health on a port, and nothing else."""
    program = Program(
        name=name,
        command=[sys.executable, "-c", TOY_SHARD, str(port)],
        log=Path("/dev/null"),
    )
    return Shard(kind="toy", device=0, health_port=port, program=program)


def port_of(shard: Shard) -> int:
    """The port that a shard is told to listen on."""
    option = next(word for word in shard.program.command if word.startswith("--port="))
    return int(option.partition("=")[2])
