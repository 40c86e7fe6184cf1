"""What a Slurm deployment makes of its settings, without a Slurm."""

from pathlib import Path

import pytest

from deploy.local.supervisor import Program
from deploy.slurm.commands import count_gpus, require_slurm
from deploy.slurm.devices import known_devices, preset_of
from deploy.slurm.programs import Place, control_programs, nodes_program, shard_programs
from deploy.slurm.settings import SlurmSettings, read_settings, settings_file
from realloc.config import load
from realloc.core.errors import InvalidInput, NotFound
from realloc.plain_data import ConfigError
from services.generation.config import GenerationConfig
from services.param_store.config import ParamStoreConfig
from services.plan_search.config import PlanSearchConfig
from services.scheduler.config import SchedulerConfig
from services.trainer.config import TrainerConfig

PLACE = Place(host="127.0.0.1", etcd_endpoints=("127.0.0.1:2379",))
CONFIGS = {
    config.service: config
    for config in (
        SchedulerConfig,
        PlanSearchConfig,
        ParamStoreConfig,
        TrainerConfig,
        GenerationConfig,
    )
}


def configured(program: Program) -> SchedulerConfig | TrainerConfig:
    """The configuration that a program's command line makes."""
    kind = program.command[2].removeprefix("services.")
    pairs = (word.removeprefix("--").split("=", 1) for word in program.command[3:])
    found: SchedulerConfig | TrainerConfig = load(CONFIGS[kind], None, {}, dict(pairs))  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(
    ("generic", "count"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:h100:4(S:0),gpu:h100:4(S:1),nic:2", 8),
        ("shard:32,nic:mlx5:8", 0),
    ],
)
def test_gpus_of_a_node_are_counted(generic: str, count: int) -> None:
    """What sinfo's %G says, in the forms that Slurm uses."""
    assert count_gpus(generic) == count


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_the_drivers_name_tells_the_preset(name: str, preset: str) -> None:
    """The most specific preset whose parts all stand in the name."""
    assert preset_of(name) == preset


def test_unknown_hardware_is_named() -> None:
    """The presets to choose from stand in the message."""
    with pytest.raises(InvalidInput, match=r"'Quadro'; give one of A100"):
        preset_of("Quadro")


def test_command_lines_fit_the_services() -> None:
    """Every option is a field of its service's configuration, with the right value."""
    settings = known_devices(SlurmSettings(nodes=4, gpus_per_node=0, devices_per_node=2))
    scheduler = next(each for each in control_programs(settings, PLACE) if each.name == "scheduler")
    config = configured(scheduler)
    assert isinstance(config, SchedulerConfig)
    assert (config.num_nodes, config.devices_per_node, config.device_kind) == (4, 2, "cpu")
    for program in control_programs(settings, PLACE):
        configured(program)
    shards = [configured(each) for each in shard_programs(settings, PLACE, 3, [])]
    assert [(each.instance, each.device, each.node) for each in shards] == [  # type: ignore[union-attr]
        ("trainer-6", 6, 3),
        ("generation-6", 6, 3),
        ("trainer-7", 7, 3),
        ("generation-7", 7, 3),
    ]


def test_a_trainer_sees_its_gpu_and_a_replica_those_after_it_too() -> None:
    """A replica may span the devices that follow its own."""
    settings = SlurmSettings(nodes=2, gpus_per_node=3, device_kind="H100", device_memory_bytes=1)
    programs = shard_programs(settings, PLACE, 1, ["4", "5", "6"])
    visible = {each.name: each.environment["CUDA_VISIBLE_DEVICES"] for each in programs}
    assert visible == {
        "trainer-3": "4",
        "generation-3": "4,5,6",
        "trainer-4": "5",
        "generation-4": "5,6",
        "trainer-5": "6",
        "generation-5": "6",
    }
    assert "--gpus-per-node=3" in nodes_program(settings, PLACE).command


def test_settings_survive_the_file(tmp_path: Path) -> None:
    """The job reads what the login node wrote."""
    settings = SlurmSettings(nodes=3, run_dir=tmp_path, etcd_endpoints=("a:1", "b:2"))
    settings_file(tmp_path).parent.mkdir()
    settings.save(settings_file(tmp_path))
    assert read_settings(tmp_path) == settings


def test_all_wrong_settings_are_named_at_once() -> None:
    """Fields and what to give instead."""
    wrong = {"nodes": "0", "time": "soon", "margin_seconds": "3", "devices_per_node": "0"}
    with pytest.raises(ConfigError) as caught:
        load(SlurmSettings, None, {}, wrong)
    assert [problem.path for problem in caught.value.problems] == [
        "nodes", "devices_per_node", "time", "margin_seconds"
    ]  # fmt: skip


def test_a_machine_without_slurm_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a traceback of a missing program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="login node"):
        require_slurm()
