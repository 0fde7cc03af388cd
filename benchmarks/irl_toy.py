"""Does inverse RL find the reward? On a world small enough to be enumerated, where the truth is known.

A response is five words out of five: 3,125 of them. The reference is a Markov chain, the true reward a sum over words
and pairs of neighbours, and the expert is exactly pi_ref exp(truth / beta), normalised. A fifth of the responses is
never shown; on it the learnt reward is ranked against the truth. Where policy and reward learn in turn, the policy is
improved exactly: its log-probabilities go half the way to those of pi_ref exp(reward), which is what an optimizer
with a price of 1 on the KL divergence strives for.

    python benchmarks/irl_toy.py [--demos 2000] [--seeds 3] [--algorithms one-shot airl maxent gail]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from rlhf_core.functional import rank_correlation
from rlhf_core.interfaces import Config, Context, FeedbackSource
from rlhf_core.records import Demonstration, Feedback, Prompt, Sample
from rlhf_plugin_irl.config import IRLRewardConfig
from rlhf_plugin_irl.reward import IRLReward
from torch import Tensor

WORDS, LENGTH, PROMPT = ("ba", "de", "fi", "go", "lu"), 5, Prompt(text=":")
BETA = 1.0  # the expert's price on drifting from the reference, in deviations of the true reward
SPREAD = 0.4  # deviation of the logits of the reference
STEPS, ROLLOUT = 60, 64  # of the policy, and samples of each


class World:
    """The enumeration of one seed. Tensors are (3125,): `truth`, `log_reference`, `log_expert`, `held_out`."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.rows = torch.tensor(list(product(range(len(WORDS)), repeat=LENGTH)))  # (3125, 5)
        self.texts = ["".join(f" {WORDS[word]}" for word in row) for row in self.rows.tolist()]
        self.place = {text: i for i, text in enumerate(self.texts)}
        size = len(WORDS)
        word, pair = torch.randn(size, generator=draw), torch.randn(size, size, generator=draw)
        truth = word[self.rows].sum(1) + pair[self.rows[:, :-1], self.rows[:, 1:]].sum(1)
        self.truth = (truth - truth.mean()) / truth.std()
        first = (SPREAD * torch.randn(size, generator=draw)).log_softmax(0)
        following = (SPREAD * torch.randn(size, size, generator=draw)).log_softmax(1)
        self.log_reference = first[self.rows[:, 0]] + following[self.rows[:, :-1], self.rows[:, 1:]].sum(1)
        self.log_expert = (self.log_reference + self.truth / BETA).log_softmax(0)
        self.held_out = torch.rand(len(self.texts), generator=draw) < 0.2

    def draw(self, log_policy: Tensor, count: int, seed: int) -> list[str]:
        """Responses of a policy, but for those held out."""
        chances = log_policy.exp().masked_fill(self.held_out, 0.0)
        rows = torch.multinomial(chances, count, replacement=True, generator=torch.Generator().manual_seed(seed))
        return [self.texts[row] for row in rows.tolist()]


class Nothing(Config):
    """No options."""


class Texts(FeedbackSource[Nothing]):
    """Demonstrations from memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(Nothing(), Context())
        self.texts = texts

    def __iter__(self) -> Iterator[Feedback]:
        return (Demonstration(prompt=PROMPT, response=text) for text in self.texts)


class Chain:
    """A policy that draws from the enumeration: all that a reward asks of one."""

    def __init__(self, world: World) -> None:
        self.world, self.log_policy = world, world.log_reference

    def generate(self, prompts: Sequence[Prompt], sampling: Any, *, seed: int, sample_ids: Sequence[int]) -> Any:
        texts = self.world.draw(self.log_policy, len(prompts), seed + sample_ids[0])
        return SimpleNamespace(samples=tuple(Sample(p, text) for p, text in zip(prompts, texts, strict=True)))

    def score_logprobs(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        rows = [self.world.place[sample.response] for sample in samples]
        return self.log_policy[rows], self.world.log_reference[rows]


def make_reward(world: World, policy: Chain, demonstrations: Sequence[str], seed: int, **config: Any) -> IRLReward:
    """A network of width 32 over the words."""
    sources = {"texts": Texts(world.texts[:: len(world.texts) // 200]), "experts": Texts(demonstrations)}

    def resolve(kind: str, id: str) -> Any:
        return policy if kind == "policy" else sources[id]

    online = config["algorithm"] != "one-shot"
    settings = {
        "fresh": {
            "architecture": "llama",
            "sizes": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
                      "num_key_value_heads": 4, "max_position_embeddings": 16, "initializer_range": 0.2},
            "tokenizer": {"text": ["texts"], "vocab_size": 270},
        },
        "samples_from": "reference", "held_out": 0.0, "pooling": "mean", "batch_size": 64, "learning_rate": 3e-3,
        "weight_decay": 0.2,
        **({"demonstrations": "experts"} if online else {}), **config,
    }  # fmt: skip
    reward = IRLReward(IRLRewardConfig.model_validate(settings), Context("reward", "irl", seed, resolve=resolve))
    ids = {text: reward.encode(PROMPT, text) for text in world.texts}
    reward.encode = lambda prompt, response: ids[response]  # type: ignore[method-assign]  # most of the time otherwise
    return reward


@torch.no_grad()
def everything(world: World, reward: IRLReward) -> Tensor:
    """(3125,): the score of every response."""
    return reward.score([Sample(PROMPT, text) for text in world.texts]).values


def learn(world: World, demonstrations: Sequence[str], algorithm: str, seed: int, **config: Any) -> Tensor:
    """The scores of every response after learning from `demonstrations`: a fit, and but for one-shot STEPS in turn."""
    policy = Chain(world)
    settings = {"epochs": 6, "samples_per_demonstration": 4, "update_learning_rate": 1e-3,
                "standardise": False}  # fmt: skip
    reward = make_reward(world, policy, demonstrations, seed, algorithm=algorithm, **{**settings, **config})
    reward.fit(Texts(demonstrations))
    for step in range(0 if algorithm == "one-shot" else STEPS):
        texts = world.draw(policy.log_policy, ROLLOUT, 1000 * seed + step)
        reward.update(SimpleNamespace(samples=[Sample(PROMPT, text) for text in texts]), policy.score_logprobs)  # type: ignore[arg-type]
        best = world.log_reference + everything(world, reward)
        policy.log_policy = ((policy.log_policy + best) / 2).log_softmax(0)
    return everything(world, reward)


def run(algorithm: str, seed: int, demos: int = 2000, **config: Any) -> dict[str, float]:
    """What the reward learnt from `demos` demonstrations is worth, on responses that were never shown.

    spearman: with the truth. pair_accuracy: pairs of responses that it puts in the true order. null: rank correlation
    with the truth where the demonstrations are samples of the reference. reference: rank correlation with log pi_ref.
    gain: the true reward won by pi_ref exp(score), divided by what the expert wins.
    """
    world = World(seed)
    learnt = learn(world, world.draw(world.log_expert, demos, seed + 1), algorithm, seed, **config)
    nothing = learn(world, world.draw(world.log_reference, demos, seed + 2), algorithm, seed, **config)
    kept = world.held_out
    scores, truth = learnt[kept], world.truth[kept]
    order = (scores[:, None] - scores[None]).sign() * (truth[:, None] - truth[None]).sign()
    reference, expert = world.log_reference.exp(), world.log_expert.exp()
    optimised = (world.log_reference + learnt).softmax(0)
    return {
        "spearman": rank_correlation(scores, truth),
        "pair_accuracy": float((order > 0).sum() / (order != 0).sum()),
        "null": rank_correlation(nothing[kept], truth),
        "reference": rank_correlation(scores, world.log_reference[kept]),
        "gain": float((optimised - reference) @ world.truth / ((expert - reference) @ world.truth)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demos", type=int, nargs="+", default=[2000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algorithms", nargs="+", default=["one-shot", "airl", "maxent", "gail"])
    arguments = parser.parse_args()
    names = ["spearman", "pair_accuracy", "null", "reference", "gain"]
    print(f"| algorithm | demonstrations | {' | '.join(names)} |")
    print("|---" * (len(names) + 2) + "|")
    for algorithm in arguments.algorithms:
        for demos in arguments.demos:
            found = [run(algorithm, seed, demos) for seed in range(arguments.seeds)]
            cells = [" ".join(f"{row[name]:.3f}" for row in found) for name in names]
            print(f"| {algorithm} | {demos} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
