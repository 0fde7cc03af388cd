"""What flows through a reinforcement step: samples, scores and rollouts.

Letters used in shapes: B samples, P prompt positions (left-padded), T response positions (right-padded), K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from .feedback import Prompt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """A response to a prompt, as text.

    `response_ids` are the policy's own token ids where it was sampled, for rewards that share its tokenizer.
    """

    prompt: Prompt
    response: str
    response_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Span:
    """Credit for the characters [start, end) of a response."""

    start: int
    end: int
    credit: float


@dataclass(frozen=True, eq=False)
class Scores:
    """What a reward model says of B samples.

    Attributes:
        values: (B,) float, one score per sample; ignored where abstained.
        spans: per sample, parts of its score earned by character ranges of the response; they are part of the score,
            not added to it: what the spans do not account for goes to the last token.
        abstained: (B,) bool, True where the model has no opinion; such a sample gets weight 0. None: nowhere.
        parts: named (B,) tensors that are logged one by one, such as the aspects of a rating.
    """

    values: Tensor
    spans: tuple[tuple[Span, ...], ...] | None = None
    abstained: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Rollout:
    """A batch of sampled responses with all that is known of them.

    Log-probabilities are natural logarithms under the full softmax at `temperature`. Optional entries are None unless
    a component asked for them with `Needs`.

    Outside `mask` rewards are 0, and other entries may be any finite number, which means nothing.

    Attributes:
        samples: B samples as text.
        prompt_ids: (B, P) int64, left-padded; prompt_mask: (B, P) bool, True on real tokens.
        response_ids: (B, T) int64, right-padded; attention: (B, T) bool, True on real tokens.
        mask: (B, T) bool, True on tokens the policy chose and may learn from: attention without the holes of other
            speakers, and empty for abstained samples.
        logprobs: (B, T) float32, of the policy that is improved ("old" log-probabilities).
        truncated: (B,) bool, True where the response hit its length limit.
        groups: (B,) int64, equal for samples of one prompt; an abstained sample is a group of its own.
        sample_ids: (B,) int64, the sample's number in its step.
        temperature: at which the log-probabilities are taken.
        behaviour_logprobs: (B, T), of the truncated distribution that sampled, if top-k or top-p was in use.
        reference_logprobs: (B, T). values: (B, T), V before each token. bootstrap: (B,), V after the last token.
        entropy: (B, T), in nats. top_ids, top_logprobs: (B, T, K), the K likeliest tokens.
        token_ends: (B, T) int64, how many characters of the response are complete once the token is there.
        scores: what each reward said. score: (B,), their weighted sum, before shaping.
        rewards: (B, T), after shaping, 0 outside mask.
        abstained: (B,) bool.
    """

    samples: tuple[Sample, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    attention: Tensor
    mask: Tensor
    logprobs: Tensor
    truncated: Tensor
    groups: Tensor
    sample_ids: Tensor
    temperature: float = 1.0
    behaviour_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    bootstrap: Tensor | None = None
    entropy: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
    token_ends: Tensor | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    score: Tensor | None = None
    rewards: Tensor | None = None
    abstained: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: how many tokens each response has, end of text included."""
        return self.attention.sum(1)

    def replace(self, **changes: Any) -> Rollout:
        """A copy with some entries changed."""
        return replace(self, **changes)

    def tensors(self) -> dict[str, Tensor]:
        """All tensor entries that are present, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if hasattr(value, "shape")}

    def to(self, device: Any) -> Rollout:
        """A copy with all tensors on `device`."""
        return self.replace(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def select(self, rows: Sequence[int]) -> Rollout:
        """The samples at `rows`, without the columns that are padding in all of them, and without `scores`."""
        index = self.mask.new_tensor(list(rows), dtype=self.groups.dtype)
        first = self._first_prompt_column(index)
        last = max(int(self.attention[index].sum(1).max()), 1)
        changes: dict[str, Any] = {}
        for name, tensor in self.tensors().items():
            tensor = tensor[index]
            if name in PROMPT_COLUMNS:
                tensor = tensor[:, first:]
            elif tensor.dim() > 1:
                tensor = tensor[:, :last]
            changes[name] = tensor
        return self.replace(samples=tuple(self.samples[i] for i in rows), scores={}, **changes)

    def _first_prompt_column(self, index: Tensor) -> int:
        used = self.prompt_mask[index].any(0).nonzero()
        return int(used[0]) if len(used) else self.prompt_mask.shape[1] - 1


PROMPT_COLUMNS = frozenset({"prompt_ids", "prompt_mask"})
