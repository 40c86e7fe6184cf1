"""Proximal policy optimization: actor_gen → {reward, ref, critic} → {actor, critic} train."""

from realloc.core.experiment import Experiment
from realloc.core.model import Head
from realloc.dataflow.graph import CallKind, DataflowGraph, FunctionCall, GraphModel

_ROLLOUT = ("tokens", "prompt_length", "logprobs")
_TRAIN_INPUTS = (*_ROLLOUT, "reward", "ref_logprobs", "values")


def ppo_graph(experiment: Experiment) -> DataflowGraph:
    """The graph of PPO; without a reward model the rollouts arrive with their rewards."""
    by_model = experiment.reward_model is not None
    rollout = FunctionCall(
        name="actor_gen",
        model="actor",
        kind=CallKind.GENERATE,
        work="",
        outputs=_ROLLOUT if by_model else (*_ROLLOUT, "reward"),
    )
    models = [
        GraphModel(model_id="actor", head=Head.LM, trains=True),
        GraphModel(model_id="critic", head=Head.VALUE, trains=True),
        GraphModel(model_id="ref", head=Head.LM, trains=False),
    ]
    calls = [rollout]
    if by_model:
        models.append(GraphModel(model_id="reward", head=Head.VALUE, trains=False))
        calls.append(_inference("reward_inf", "reward", "score", "reward"))
    calls += [
        _inference("ref_inf", "ref", "logprobs", "ref_logprobs"),
        _inference("critic_inf", "critic", "values", "values"),
        _train("actor_train", "actor", "ppo_actor"),
        _train("critic_train", "critic", "ppo_critic"),
    ]
    return DataflowGraph(
        name="ppo",
        models=tuple(models),
        calls=tuple(calls),
        evaluation=rollout if experiment.evaluation else None,
    )


def _inference(name: str, model: str, work: str, output: str) -> FunctionCall:
    return FunctionCall(
        name=name,
        model=model,
        kind=CallKind.INFERENCE,
        work=work,
        inputs=("tokens", "prompt_length"),
        outputs=(output,),
    )


def _train(name: str, model: str, loss: str) -> FunctionCall:
    return FunctionCall(
        name=name, model=model, kind=CallKind.TRAIN, work=loss, inputs=_TRAIN_INPUTS
    )
