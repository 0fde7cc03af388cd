"""A policy over three tokens with a value for every state, rollouts of it, and stand-ins for what a stage gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from rlhf_core.interfaces import Context, Needs, Outputs, Sampling, TrainingData
from rlhf_core.records import Feedback, Prompt, Rollout, Sample
from rlhf_plugin_a2c.config import A2CConfig
from rlhf_plugin_a2c.optimizer import A2C
from torch import Tensor, nn

END, LONGEST = 2, 3
WORDS = ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))
STATES: dict[tuple[int, ...], int] = {(): 0, **{word: i + 1 for i, word in enumerate(WORDS)}}
"""What may have been said so far, tokens 0 and 1, and the number of that state; token 2 ends a response."""
RESPONSES = [(END,), (0, END), (1, END), *(w + (t,) for w, t in product(WORDS[2:], range(3)))]
"""All 15 of them; those of three tokens are cut if they do not end."""


class Table:
    """The softmax of a table of logits, and a table of values, for every prompt, so that gradients stay apart."""

    critic = "separate"
    context = Context("policy", "table")

    def __init__(self, prompts: int = 1, seed: int = 0) -> None:
        noise = torch.Generator().manual_seed(seed)
        logits, values = (torch.randn(len(STATES), n, generator=noise, dtype=torch.float64) for n in (3, 1))
        self.module = nn.Module()
        self.module.table = nn.Parameter(logits.repeat(prompts, 1, 1))  # (prompts, states, 3)
        self.module.values = nn.Parameter(values[:, 0].repeat(prompts, 1))  # (prompts, states)

    @property
    def table(self) -> Tensor:
        return self.module.table

    @property
    def values(self) -> Tensor:
        return self.module.values

    def prepare(self, needs: Needs) -> None:
        """The heads are there."""

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        ids, outside = rollout.response_ids, ~rollout.attention
        where = rollout.prompt_ids[:, -1:], states(ids)
        spoken = self.table[where].log_softmax(-1)  # (B, T, 3)
        entropy = -(spoken.exp() * spoken).sum(-1)
        return Outputs(
            logprobs=spoken.gather(-1, ids[..., None])[..., 0].masked_fill(outside, 0.0),
            values=self.values[where].masked_fill(outside, 0.0) if needs.values else None,
            entropy=entropy.masked_fill(outside, 0.0) if needs.entropy else None,
        )

    def probability(self, response: tuple[int, ...], prompt: int = 0) -> Tensor:
        """Of a whole response, with gradient."""
        spoken = self.table[prompt].softmax(-1)
        return torch.stack([spoken[STATES[response[:t]], token] for t, token in enumerate(response)]).prod()


def states(ids: Tensor) -> Tensor:
    """(B, T) number of the state before each token."""
    words = ids.clamp(max=1)
    columns = [torch.zeros_like(words[:, 0]), 1 + words[:, 0], 3 + 2 * words[:, 0] + words[:, 1 % ids.shape[1]]]
    return torch.stack(columns, 1)[:, : ids.shape[1]]


def tree_rewards(seed: int = 1) -> Tensor:
    """A reward for every token after every beginning: any reward of whole responses can be written so."""
    return torch.randn(len(STATES), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampled(policy: Table, per_prompt: int, rewards: Tensor, seed: int = 0) -> Rollout:
    """Responses drawn from the policy, for each of its prompts, paid by a table of rewards (states, 3)."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.arange(len(policy.table)).repeat_interleave(per_prompt)
    ids = torch.full((len(prompts), LONGEST), END)
    with torch.no_grad():
        for t in range(LONGEST):
            chances = policy.table[prompts, states(ids)[:, t]].softmax(-1)  # (B, 3)
            ids[:, t] = torch.multinomial(chances, 1, generator=generator)[:, 0]
            if t:
                ids[:, t].masked_fill_(ids[:, t - 1] == END, END)
    ended = (ids == END).long().cumsum(1)
    mask = (ended - (ids == END).long()) == 0  # up to the first end, itself included
    rows = torch.arange(len(ids))
    paid = rewards[states(ids), ids].masked_fill(~mask, 0.0)
    rollout = Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * len(rows), prompt_ids=prompts[:, None],
        prompt_mask=torch.ones_like(prompts[:, None], dtype=torch.bool), response_ids=ids, attention=mask, mask=mask,
        logprobs=torch.zeros(mask.shape, dtype=torch.float64), truncated=ended[:, -1] == 0, groups=prompts,
        sample_ids=rows, rewards=paid, score=paid.sum(1), abstained=rows < 0,
    )  # fmt: skip
    with torch.no_grad():
        now = policy.forward(rollout, Needs(values=True))
    return rollout.replace(logprobs=now.logprobs, values=now.values)


class Given(TrainingData):
    """A rollout made beforehand: the same one in every step."""

    def __init__(self, rollout: Rollout) -> None:
        self.given, self.step = rollout, 0

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    def prompts(self, count: int) -> list[Prompt]:
        raise NotImplementedError

    def rollout(self, prompts: Any, **options: Any) -> Rollout:
        return self.given

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        raise NotImplementedError

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        raise NotImplementedError


def make(policy: Any = None, **config: Any) -> A2C:
    """The optimizer, bound; by default all samples in one update, gradients unclipped."""
    config = {"prompts_per_step": 64, "max_grad_norm": 1e9, "micro_batch_tokens": 1 << 24, **config}
    config.setdefault("minibatch_size", config["prompts_per_step"] * config.get("samples_per_prompt", 1))
    optimizer = A2C(A2CConfig(**config), Context("optimizer", "mine"))
    optimizer.bind(policy or Table(), 1)
    return optimizer


def gradients(policy: Table, optimizer: A2C, data: TrainingData) -> dict[str, Tensor]:
    """The gradients of the first update of a step, of "table" and "values"; the weights stay."""
    found: dict[str, Tensor] = {}

    class Recorder:
        def step(self, frozen: Any = ()) -> dict[str, float]:
            for name, p in policy.module.named_parameters():
                found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
                p.grad = None
            return {"grad_norm": 0.0}

    kept, optimizer.gradient = optimizer.gradient, Recorder()  # type: ignore[assignment]
    try:
        optimizer.step(data)
    finally:
        optimizer.gradient = kept
    return found


def made_up(rewards: Any, values: Any, mask: Any, **changes: Any) -> Rollout:
    """A rollout of which only rewards, values and mask mean anything, in float64."""
    valid = torch.as_tensor(mask) != 0
    ids, rows = torch.zeros(valid.shape, dtype=torch.long), torch.arange(len(valid))
    rollout = Rollout(
        samples=(Sample(Prompt(text="?"), "!"),) * len(rows), prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] == 0,
        response_ids=ids, attention=ids == 0, mask=valid, logprobs=torch.zeros(valid.shape, dtype=torch.float64),
        truncated=rows < 0, groups=rows, sample_ids=rows, rewards=torch.as_tensor(rewards, dtype=torch.float64),
        values=torch.as_tensor(values, dtype=torch.float64),
    )  # fmt: skip
    return rollout.replace(**changes)
