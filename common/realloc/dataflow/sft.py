"""Supervised fine-tuning: one train call on rows of the data file."""

from realloc.core.experiment import Experiment
from realloc.core.model import Head
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall, GraphModel


def sft_graph(experiment: Experiment) -> DataflowGraph:
    """The graph of SFT; generation serves evaluation only."""
    evaluation = FunctionCall(
        name="actor_gen", model="actor", kind=CallKind.GENERATE, work="", outputs=("tokens",)
    )
    train = FunctionCall(name="actor_train", model="actor", kind=CallKind.TRAIN, work="sft")
    return DataflowGraph(
        name="sft",
        models=(GraphModel(model_id="actor", head=Head.LM, trains=True),),
        calls=(train,),
        evaluation=evaluation if experiment.evaluation else None,
    )
