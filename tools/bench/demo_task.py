"""Finds out what the demo's hyperparameters give: SFT, then PPO, on one CPU core.

Plain torch and transformers, without services, with the project's own random weights, data
order, advantages, losses and controllers: the supervised part gives what the demo gives.
Prints the accuracy on held-out prompts for each seed:

    OMP_NUM_THREADS=1 python -m tools.bench.demo_task --seeds 0 1 2

Shapes: B rollouts, T token positions of prompt and response, S = T − 1 positions that have a
next token.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from examples.arithmetic.make_data import split_rows
from examples.arithmetic.make_model import CONFIG, EOS, PAD
from examples.arithmetic.reward import exact_answer
from realloc.algorithms.advantages import (
    estimate_advantages,
    shape_rewards,
    whiten,
    whitening_sums,
)
from realloc.algorithms.losses import LossSums, policy_loss, sft_loss, value_loss
from realloc.algorithms.padding import pad_rows, row_mask
from realloc.core.kl_controller import initial_kl_controller
from realloc.core.settings import OptimizerSettings, PpoSettings
from realloc.dataflow.partition import iteration_rows, mini_batch_rows
from realloc.reallocation.families import VALUE_HEAD, CanonicalTensor
from services.trainer.weights import Box, RandomWeights

Row = dict[str, str]
Decide = Callable[[Tensor], Tensor]
"""Logits [B, vocabulary] → next tokens [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters of the demo's two jobs."""

    sft_steps: int = 160
    sft_batch: int = 128
    sft_optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            learning_rate=2e-3, warmup_steps=20, weight_decay=0.5
        )
    )
    iterations: int = 100
    rollouts: int = 512
    max_new_tokens: int = 4
    actor_optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(learning_rate=2e-4)
    )
    critic_optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(learning_rate=1e-3)
    )
    ppo: PpoSettings = field(
        default_factory=lambda: PpoSettings(
            kl_coefficient=0.01, mini_batches=2, epochs=2, critic_warmup_iterations=3
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollouts:
    """Sampled responses behind their prompts, padded on the right."""

    tokens_BT: Tensor
    response_mask_BS: Tensor
    """True where the next token belongs to the response."""
    responses: tuple[str, ...]


class Critic(torch.nn.Module):
    """The body of a language model under a head of one number per token."""

    def __init__(self, actor: LlamaForCausalLM, seed: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(actor.model)
        self.head = torch.nn.Linear(CONFIG["hidden_size"], 1, bias=False)
        draw_weights({VALUE_HEAD: self.head.weight}, seed)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """The value of the state before each next token, [B, S]."""
        values_BT: Tensor = self.head(self.body(tokens_BT)[0])[..., 0]
        return values_BT[:, :-1]


class Optimizer:
    """AdamW with the warm-up and clipping of the project's settings."""

    def __init__(self, model: torch.nn.Module, settings: OptimizerSettings) -> None:
        self._settings = settings
        self._steps = 0
        self._adamw = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )

    def step(self, sums: LossSums) -> None:
        """One step on the mean loss per token."""
        self._steps += 1
        (group,) = self._adamw.param_groups
        warmth = min(1.0, self._steps / max(1, self._settings.warmup_steps))
        group["lr"] = self._settings.learning_rate * warmth
        self._adamw.zero_grad()
        (sums.loss / sums.num_tokens).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(group["params"], self._settings.max_grad_norm)
        self._adamw.step()


def draw_weights(parameters: Mapping[str, Tensor], seed: int) -> None:
    """Overwrite parameters, by canonical name, with those that a trainer shard would draw."""
    source = RandomWeights(seed, CONFIG["initializer_range"])
    for name, parameter in parameters.items():
        tensor = CanonicalTensor(name=name, shape=tuple(parameter.shape))
        box = Box(row=0, rows=tensor.shape[0], col=0, cols=tensor.cols)
        parameter.data.copy_(source.read(tensor, box).view_as(parameter))


def token_logprobs(model: LlamaForCausalLM, tokens_BT: Tensor) -> Tensor:
    """Log-probability of each next token, [B, S]."""
    logprobs = model(tokens_BT).logits[:, :-1].log_softmax(-1)
    chosen: Tensor = logprobs.gather(2, tokens_BT[:, 1:, None])[..., 0]
    return chosen


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token ids as one matrix, PAD on the right."""
    mask = row_mask(torch.tensor([len(row) for row in rows]))
    values = torch.tensor([token for row in rows for token in row])
    return pad_rows(values, mask).masked_fill(~mask, PAD)


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def sampled(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


@torch.no_grad()
def generate(
    model: LlamaForCausalLM, prompts: Sequence[str], max_new_tokens: int, decide: Decide
) -> Rollouts:
    """Continue all prompts (of equal length) until their end tokens, or the limit."""
    tokens = padded([list(prompt.encode()) for prompt in prompts])
    prompt_length = tokens.shape[1]
    running_B = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(max_new_tokens):
        chosen_B = decide(model.lm_head(model.model(tokens)[0][:, -1]))
        tokens = torch.cat([tokens, torch.where(running_B, chosen_B, PAD)[:, None]], 1)
        running_B = running_B & (chosen_B != EOS)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, prompt_length:] = True
    ended_BT = (tokens == EOS).cumsum(1)
    mask &= (ended_BT == 0) | ((ended_BT == 1) & (tokens == EOS))
    responses = [bytes(t for t in row[prompt_length:].tolist() if t < 256) for row in tokens]
    return Rollouts(
        tokens_BT=tokens,
        response_mask_BS=mask[:, 1:],
        responses=tuple(response.decode("latin-1") for response in responses),
    )


def score(rows: Sequence[Row], rollouts: Rollouts) -> Tensor:
    """The reward function's verdict on each rollout, [B]."""
    return torch.tensor(
        [
            exact_answer(row["prompt"], response, row["ground_truth"])
            for row, response in zip(rows, rollouts.responses, strict=True)
        ]
    )


def accuracy(model: LlamaForCausalLM, rows: Sequence[Row], recipe: Recipe, decide: Decide) -> float:
    """Fraction of exact answers."""
    prompts = [row["prompt"] for row in rows]
    return float(score(rows, generate(model, prompts, recipe.max_new_tokens, decide)).mean())


def train_sft(model: LlamaForCausalLM, rows: Sequence[Row], recipe: Recipe, seed: int) -> None:
    """Supervised steps on prompts with their completions."""
    optimizer = Optimizer(model, recipe.sft_optimizer)
    for step in range(1, recipe.sft_steps + 1):
        chosen = [rows[i] for i in iteration_rows(len(rows), recipe.sft_batch, step, seed)]
        texts = [(row["prompt"] + row["completion"]).encode() for row in chosen]
        tokens_BT = padded([[*text, EOS] for text in texts])
        learned_BT = tokens_BT != PAD
        for i, row in enumerate(chosen):
            learned_BT[i, : len(row["prompt"])] = False
        optimizer.step(sft_loss(token_logprobs(model, tokens_BT), learned_BT[:, 1:]))


class PpoTrainer:
    """An actor in training with its critic and reference."""

    def __init__(self, actor: LlamaForCausalLM, recipe: Recipe, seed: int) -> None:
        self._actor = actor
        self._reference = copy.deepcopy(actor)
        self._critic = Critic(actor, seed)
        self._recipe = recipe
        self._seed = seed
        self._actor_optimizer = Optimizer(actor, recipe.actor_optimizer)
        self._critic_optimizer = Optimizer(self._critic, recipe.critic_optimizer)
        self._controller = initial_kl_controller(recipe.ppo)

    def iterate(self, rows: Sequence[Row], iteration: int) -> tuple[float, float]:
        """One iteration (from 1); returns the mean reward and KL per rollout."""
        recipe, ppo = self._recipe, self._recipe.ppo
        chosen = [
            rows[i] for i in iteration_rows(len(rows), recipe.rollouts, iteration, self._seed)
        ]
        prompts = [row["prompt"] for row in chosen]
        rollouts = generate(self._actor, prompts, recipe.max_new_tokens, sampled)
        tokens, mask, scores = (
            rollouts.tokens_BT,
            rollouts.response_mask_BS,
            score(chosen, rollouts),
        )
        with torch.no_grad():
            old = token_logprobs(self._actor, tokens)
            reference = token_logprobs(self._reference, tokens)
            values = self._critic(tokens)
        rewards = shape_rewards(scores, old, reference, mask, self._controller.coefficient)
        targets = estimate_advantages(
            rewards, values, mask, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda
        )
        advantages = targets.advantages_BT
        if ppo.whiten_advantages:
            advantages = whiten(advantages, mask, whitening_sums(advantages, mask))
        for part in mini_batch_rows(
            len(chosen), ppo.mini_batches, ppo.epochs, 1, self._seed + iteration
        ):
            i = torch.tensor(part)
            self._train_critic(tokens[i], values[i], targets.returns_BT[i], mask[i])
            if iteration > ppo.critic_warmup_iterations:
                self._train_actor(tokens[i], old[i], advantages[i], mask[i])
        kl = float(torch.where(mask, old - reference, 0.0).sum(1).mean())
        self._controller = self._controller.updated(kl, len(chosen))
        return float(scores.mean()), kl

    def _train_actor(self, tokens: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> None:
        logprobs = token_logprobs(self._actor, tokens)
        clip = self._recipe.ppo.clip_ratio
        self._actor_optimizer.step(policy_loss(logprobs, old, advantages, mask, clip_ratio=clip))

    def _train_critic(self, tokens: Tensor, old: Tensor, returns: Tensor, mask: Tensor) -> None:
        clip = self._recipe.ppo.value_clip
        self._critic_optimizer.step(
            value_loss(self._critic(tokens), old, returns, mask, value_clip=clip)
        )


def run_seed(recipe: Recipe, seed: int, report_every: int) -> None:
    """Both jobs from one seed; prints as it goes and one summary line."""
    train, heldout = split_rows()
    torch.manual_seed(seed)
    actor = LlamaForCausalLM(LlamaConfig(**CONFIG))  # type: ignore[no-untyped-call]
    draw_weights(dict(actor.named_parameters()), seed)

    def heldout_accuracy() -> str:
        found = [accuracy(actor, heldout, recipe, decide) for decide in (greedy, sampled)]
        return f"{found[0]:.3f} (sampled {found[1]:.3f})"

    before = heldout_accuracy()
    started = time.perf_counter()
    train_sft(actor, train, recipe, seed)
    sft_seconds = time.perf_counter() - started
    after_sft = heldout_accuracy()
    print(f"seed {seed}: after SFT {after_sft}", flush=True)
    trainer = PpoTrainer(actor, recipe, seed)
    ppo_seconds = 0.0
    for iteration in range(1, recipe.iterations + 1):
        started = time.perf_counter()
        reward, kl = trainer.iterate(train, iteration)
        ppo_seconds += time.perf_counter() - started
        if iteration % report_every == 0:
            print(
                f"  {iteration}: reward {reward:.3f} KL {kl:.2f} {heldout_accuracy()}", flush=True
            )
    print(
        f"seed {seed}: before SFT {before}; after SFT {after_sft}, {sft_seconds:.0f} s; "
        f"after PPO {heldout_accuracy()}, {ppo_seconds:.0f} s",
        flush=True,
    )


def changed(value: Any, assignment: str) -> Any:
    """A dataclass with one field set, such as ``iterations=80`` or ``ppo.epochs=1``."""
    path, _, text = assignment.partition("=")
    name, _, rest = path.partition(".")
    if name not in {each.name for each in fields(value)}:
        raise SystemExit(f"{name} is no field of {type(value).__name__}")
    old = getattr(value, name)
    new = changed(old, f"{rest}={text}") if rest else type(old)(json.loads(text))
    return replace(value, **{name: new})


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the demo's task over seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every", type=int, default=10, help="iterations between reports")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe()
    for assignment in arguments.set:
        recipe = changed(recipe, assignment)
    for seed in arguments.seeds:
        run_seed(recipe, seed, arguments.every)


if __name__ == "__main__":
    main()
