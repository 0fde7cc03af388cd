"""A policy over three tokens whose responses can be counted, rollouts of it, and stand-ins for what a stage gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from rlhf_core.interfaces import Context, Needs, Outputs, RewardModel, Sampling, TrainingData
from rlhf_core.records import Feedback, Prompt, Rollout, Sample, Scores
from rlhf_core.testing import example_data, tiny_policy
from rlhf_core.testing.toys import NoOptions
from rlhf_plugin_reinforce.config import ReinforceConfig
from rlhf_plugin_reinforce.optimizer import Reinforce
from torch import Tensor, nn

END, LONGEST = 2, 3
WORDS = ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))
STATES: dict[tuple[int, ...], int] = {(): 0, **{word: i + 1 for i, word in enumerate(WORDS)}}
"""What may have been said so far, tokens 0 and 1, and the number of that state; token 2 ends a response."""
RESPONSES = [(END,), (0, END), (1, END), *(w + (t,) for w, t in product(WORDS[2:], range(3)))]
"""All 15 of them; those of three tokens are cut if they do not end."""


class Table:
    """The softmax of a table of logits (states, 3) for every prompt, so that gradients of prompts stay apart."""

    critic = "none"
    context = Context("policy", "table")

    def __init__(self, prompts: int = 1, seed: int = 0) -> None:
        logits = torch.randn(len(STATES), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.module = nn.Module()
        self.module.table = nn.Parameter(logits.repeat(prompts, 1, 1))  # (prompts, states, 3)

    @property
    def table(self) -> Tensor:
        return self.module.table

    def prepare(self, needs: Needs) -> None:
        """There are no heads."""

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        ids, outside = rollout.response_ids, ~rollout.attention
        spoken = self.table[rollout.prompt_ids[:, -1:], states(ids)].log_softmax(-1)  # (B, T, 3)
        entropy = -(spoken.exp() * spoken).sum(-1)
        return Outputs(
            logprobs=spoken.gather(-1, ids[..., None])[..., 0].masked_fill(outside, 0.0),
            entropy=entropy.masked_fill(outside, 0.0) if needs.entropy else None,
        )

    def probability(self, response: Sequence[int], prompt: int = 0) -> Tensor:
        """Of a whole response, with gradient."""
        spoken = self.table[prompt].softmax(-1)
        return torch.stack([spoken[STATES[tuple(response[:t])], token] for t, token in enumerate(response)]).prod()


def states(ids: Tensor) -> Tensor:
    """(B, T) number of the state before each token."""
    words = ids.clamp(max=1)
    columns = [torch.zeros_like(words[:, 0]), 1 + words[:, 0], 3 + 2 * words[:, 0] + words[:, 1 % ids.shape[1]]]
    return torch.stack(columns, 1)[:, : ids.shape[1]]


def rollout_of(responses: Tensor, prompts: Tensor, rewards: Tensor, policy: Table) -> Rollout:
    """Given responses (B, 3) to prompts (B,), paid by a table of rewards (states, 3)."""
    ended = (responses == END).long().cumsum(1)
    mask = (ended - (responses == END).long()) == 0  # up to the first end, itself included
    rows = torch.arange(len(responses))
    paid = rewards[states(responses), responses].masked_fill(~mask, 0.0)
    rollout = Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * len(rows), prompt_ids=prompts[:, None],
        prompt_mask=torch.ones_like(prompts[:, None], dtype=torch.bool), response_ids=responses, attention=mask,
        mask=mask, logprobs=torch.zeros(mask.shape, dtype=torch.float64), truncated=ended[:, -1] == 0,
        groups=prompts, sample_ids=rows, rewards=paid, score=paid.sum(1),
        abstained=torch.zeros(len(rows), dtype=torch.bool),
    )  # fmt: skip
    with torch.no_grad():
        return rollout.replace(logprobs=policy.forward(rollout, Needs()).logprobs)


def sampled(policy: Table, per_prompt: int, rewards: Tensor, seed: int = 0, *, greedy: bool = False) -> Rollout:
    """Responses of the policy to each of its prompts: drawn, or the likeliest token each time."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.arange(len(policy.table)).repeat_interleave(per_prompt)
    responses = torch.full((len(prompts), LONGEST), END)
    with torch.no_grad():
        for t in range(LONGEST):
            chances = policy.table[prompts, states(responses)[:, t]].softmax(-1)  # (B, 3)
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
            responses[:, t] = chances.argmax(-1) if greedy else drawn
            if t:
                responses[:, t].masked_fill_(responses[:, t - 1] == END, END)
    return rollout_of(responses, prompts, rewards, policy)


def tree_rewards(seed: int = 1) -> Tensor:
    """A reward for every token after every beginning: any reward of whole responses can be written so."""
    return torch.randn(len(STATES), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_gradient(policy: Table, rewards: Tensor) -> Tensor:
    """(states, 3): of the expected reward of the first prompt, summed over all responses there are."""
    value: Any = 0.0
    for response in RESPONSES:
        earned = sum(float(rewards[STATES[response[:t]], token]) for t, token in enumerate(response))
        value = value + policy.probability(response) * earned
    return torch.autograd.grad(value, policy.table)[0][0]


class Given(TrainingData):
    """Rollouts made beforehand: one in every step, and another where greedy responses are asked for."""

    def __init__(self, rollout: Rollout, greedy: Rollout | None = None) -> None:
        self.given, self.greedy, self.step = rollout, greedy, 0
        self.asked: list[Any] = []

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_new_tokens=7, temperature=0.7, stop=("!",))

    def prompts(self, count: int) -> list[Prompt]:
        return [Prompt(text="?")] * count

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        self.asked.append((prompts, options))
        greedy = options.get("sampling") is not None and options["sampling"].temperature == 0
        return self.greedy if greedy and self.greedy is not None else self.given

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        raise NotImplementedError

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        raise NotImplementedError


def make(policy: Any = None, **config: Any) -> Reinforce:
    """The optimizer, bound; by default all samples in one update, gradients unclipped."""
    defaults = {"prompts_per_step": 64, "max_grad_norm": 1e9, "micro_batch_tokens": 1 << 24}
    if config.get("baseline") in ("group", "leave-one-out"):
        defaults["samples_per_prompt"] = 2
    config = {**defaults, **config}
    config.setdefault("minibatch_size", config["prompts_per_step"] * config.get("samples_per_prompt", 1))
    optimizer = Reinforce(ReinforceConfig(**config), Context("optimizer", "mine"))
    optimizer.bind(policy or Table(), 1)
    return optimizer


def gradient(policy: Table, optimizer: Reinforce, data: TrainingData) -> Tensor:
    """(prompts, states, 3): the gradient that the first update of a step would take; the weights stay."""
    found: list[Tensor] = []

    class Recorder:
        def step(self, frozen: Any = ()) -> dict[str, float]:
            found.append(torch.zeros_like(policy.table) if policy.table.grad is None else policy.table.grad.clone())
            policy.table.grad = None
            return {"grad_norm": 0.0}

    kept, optimizer.gradient = optimizer.gradient, Recorder()  # type: ignore[assignment]
    try:
        optimizer.step(data)
    finally:
        optimizer.gradient = kept
    return found[0]


def made_up(rewards: Any, mask: Any, groups: Sequence[int] | None = None) -> Rollout:
    """A rollout of which only rewards, mask and groups mean anything, in float64."""
    valid = torch.as_tensor(mask) != 0
    ids, rows = torch.zeros(valid.shape, dtype=torch.long), torch.arange(len(valid))
    paid = torch.as_tensor(rewards, dtype=torch.float64)
    return Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * len(rows), prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] == 0,
        response_ids=ids, attention=ids == 0, mask=valid, logprobs=torch.zeros(valid.shape, dtype=torch.float64),
        truncated=rows < 0, groups=rows if groups is None else torch.tensor(groups), sample_ids=rows,
        rewards=paid, score=paid.sum(1), abstained=~valid.any(1),
    )  # fmt: skip


# --- a language model -----------------------------------------------------------------------------------------------


class Rule(RewardModel[NoOptions]):
    """A reward from a function of the response."""

    def __init__(self, rule: Any) -> None:
        super().__init__(NoOptions(), Context("reward", "rule"))
        self.rule = rule

    def score(self, samples: Sequence[Sample]) -> Scores:
        return Scores(torch.tensor([float(self.rule(sample.response)) for sample in samples]))


def language_model(rule: Any, max_new_tokens: int, **config: Any) -> tuple[Any, Reinforce, Any]:
    """A tiny policy, its optimizer, and what a stage would give: samples paid by `rule`."""
    policy = tiny_policy()
    policy.set_reference("stage-start")
    optimizer = make(policy, **config)
    data = example_data(policy, optimizer.config.needs, reward=Rule(rule), max_new_tokens=max_new_tokens)
    data.begin(0)
    return policy, optimizer, data
