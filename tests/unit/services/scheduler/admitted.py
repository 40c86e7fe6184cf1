"""An admitted PPO job and a plan for it, without files."""

from realloc.core.data_file import DataFile
from realloc.core.experiment import DataSettings, Experiment, ModelSettings
from realloc.core.mesh import DeviceMesh
from realloc.core.model import Head, ModelArchitecture
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.core.strategy import ParallelStrategy
from realloc.dataflow.catalog import build_graph
from realloc.dataflow.graph import CallKind
from services.scheduler.admission import Admission, AdmittedModel
from tests.unit.cost.models import llama

MODEL = llama(hidden=768, intermediate=2048, layers=6, heads=12, kv_heads=4, vocabulary=8192)


def admission(model: ModelArchitecture = MODEL) -> Admission:
    experiment = Experiment(
        name="test",
        algorithm="ppo",
        iterations=3,
        actor=ModelSettings(checkpoint="/m"),
        data=DataSettings(path="/d", batch_size=64),
    )
    graph = build_graph(experiment)
    models = tuple(
        AdmittedModel(
            model_id=each.model_id,
            settings=experiment.actor,
            hf_config="{}",
            architecture=model.with_head(Head.VALUE if each.model_id == "critic" else Head.LM),
            trains=each.model_id != "ref",
        )
        for each in graph.models
    )
    data = DataFile(path="/d", offsets=[0, 1], lengths=[100, 140])
    return Admission(experiment=experiment, graph=graph, models=models, data=data, evaluation=None)


def plan(
    admitted: Admission, *, trainers: str = "d1t2p1", generators: str = "d2t1p1"
) -> ExecutionPlan:
    """Every call on devices 0 and 1; each predicted to last a second."""
    mesh = DeviceMesh(first_device=0, num_devices=2)
    return ExecutionPlan(
        placements=tuple(
            CallPlacement(
                call=call.name,
                mesh=mesh,
                strategy=ParallelStrategy.parse(
                    generators if call.kind is CallKind.GENERATE else trainers
                ),
                predicted_seconds=1.0,
            )
            for call in admitted.graph.placed_calls()
        ),
        predicted_seconds=5.0,
    )
