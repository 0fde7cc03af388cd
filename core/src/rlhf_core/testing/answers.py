"""What components of each kind say to the same question, so that two of them can be compared."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

from ..interfaces import Needs, Policy, PolicyOptimizer, Sampling
from ..records import Rollout
from .compare import copied, weights
from .records import example_prompts, example_samples
from .rollouts import example_rollout
from .toys import example_data, tiny_policy
from .watching import watched

SHORT = Sampling(max_new_tokens=4)


def answer(kind: str, component: Any) -> Any:
    """What a component just built says, as data for `same`; of a kind that nothing can be asked, its state.

    An optimizer is bound and takes a step: its answer is the weights. Feedback and prompts are read to their end.
    """
    asked = _ASKED.get(kind)
    return component.state_dict() if asked is None else asked(component)


def texts(source: Any, indices: Iterable[int]) -> dict[int, Any]:
    """What prompts stand at each index, or the kind of error that is raised there."""
    found: dict[int, Any] = {}
    for i in indices:
        try:
            found[i] = getattr(source[i], "text", None)
        except Exception as error:
            found[i] = type(error)
    return found


def _reward(reward: Any) -> Any:
    with torch.no_grad():
        scores = reward.score(example_samples())
    return [scores.values, scores.abstained, scores.spans]


def shaper_input(shaper: Any, rollout: Rollout) -> Tensor:
    """The scores (B,) of the rollout or its rewards (B, T), whichever the shaper maps; a copy."""
    rewards = rollout.score if shaper.level == "sequence" else rollout.rewards
    assert rewards is not None
    return rewards.clone()


def _shaper(shaper: Any) -> Any:
    rollout = example_rollout()
    return list(shaper.shape(shaper_input(shaper, rollout), rollout))


def _policy(policy: Policy[Any]) -> Any:
    rollout = policy.generate(example_prompts()[:3], SHORT, seed=1)
    with torch.no_grad():
        out = policy.forward(rollout, Needs(entropy=True))
    return [rollout.tensors(), out.logprobs, out.entropy]


def _optimizer(optimizer: PolicyOptimizer[Any]) -> Any:
    policy = tiny_policy()
    policy.set_reference("stage-start")
    optimizer.bind(policy, 2)
    data = example_data(policy, optimizer.config.needs, max_new_tokens=3)
    data.begin(0)
    return [dict(optimizer.step(data)), weights(policy.module)]


def _environment(environment: Any) -> Any:
    prompts = example_prompts()[:3]
    rollout = environment.rollout(tiny_policy(), prompts, SHORT, seed=1, sample_ids=range(len(prompts)))
    return [rollout.tensors(), [sample.response for sample in rollout.samples]]


_ASKED: dict[str, Any] = {
    "feedback": lambda source: [getattr(record, "id", record) for record in source],
    "prompts": lambda source: texts(source, range(len(source))),
    "reward": _reward,
    "shaper": _shaper,
    "metric": lambda metric: copied(metric.measure(example_rollout())),
    "monitor": lambda monitor: [monitor.look(seen) for seen in watched(monitor)],
    "policy": _policy,
    "optimizer": _optimizer,
    "environment": _environment,
}


@contextmanager
def generators_at(seed: int) -> Iterator[None]:
    """The global generators of python, numpy and torch elsewhere, as other code leaves them; put back afterwards."""
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])
        torch.set_rng_state(before[2])
