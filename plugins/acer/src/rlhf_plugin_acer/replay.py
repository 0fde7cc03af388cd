"""The buffer of past samples that ACER learns from again."""

from __future__ import annotations

from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import State
from rlhf_core.randomness import permutation
from rlhf_core.records import Prompt, Rollout, Sample
from rlhf_core.rl import joined

KEPT = (
    "prompt_ids", "prompt_mask", "response_ids", "attention", "mask", "logprobs", "truncated", "groups", "sample_ids",
    "top_ids", "top_logprobs", "rewards",
)  # fmt: skip
"""What an update reads of a rollout: tokens, what the behaviour thought of them, and rewards; no texts, no scores."""
NO_TEXT = Sample(Prompt(text="(not kept)"), "")


class Replay:
    """The latest `capacity` samples, oldest first, on the CPU, as one rollout."""

    def __init__(self, capacity: int, where: str) -> None:
        self.capacity, self.where = capacity, where
        self.samples: Rollout | None = None

    def __len__(self) -> int:
        return 0 if self.samples is None else len(self.samples)

    def add(self, rollout: Rollout) -> Rollout | None:
        """Take in the samples that have a score, the oldest make room; returns those taken in, None if there are none.

        Raises:
            ConfigError: the rollout lacks something that an update needs.
        """
        live = rollout.mask.any(1).nonzero()[:, 0].tolist()
        if not live:
            return None
        missing = [name for name in KEPT if getattr(rollout, name) is None]
        if missing:
            raise ConfigError(self.where, f"a rollout without {', '.join(missing)}",
                              "all that `config.needs` asks for", "pass it to the data that rolls out")  # fmt: skip
        tensors = {name: getattr(rollout, name) for name in KEPT}
        fresh = Rollout(samples=(NO_TEXT,) * len(rollout), temperature=rollout.temperature, **tensors)
        fresh = fresh.select(live).to("cpu")
        whole = fresh if self.samples is None else joined([self.samples, fresh])
        # at the latest temperature, old samples too: the policy to improve is the one that samples next
        whole = whole.replace(temperature=fresh.temperature)
        self.samples = whole.select(range(max(0, len(whole) - self.capacity), len(whole)))
        return fresh

    def draw(self, count: int, seed: int) -> Rollout:
        """`count` samples without replacement, or all if there are fewer; which depends on `seed` alone."""
        assert self.samples is not None
        return self.samples.select(permutation(seed, len(self))[:count])

    def state_dict(self) -> State:
        if self.samples is None:
            return {}
        return {"tensors": self.samples.tensors(), "temperature": self.samples.temperature}

    def load_state_dict(self, state: State) -> None:
        self.samples = None
        if state:
            samples = (NO_TEXT,) * len(state["tensors"]["mask"])
            self.samples = Rollout(samples=samples, temperature=state["temperature"], **state["tensors"]).to("cpu")
