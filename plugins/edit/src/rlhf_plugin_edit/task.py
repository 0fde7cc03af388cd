"""What is learnt from edits: which of the two texts is better, and which of their words made the difference."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rlhf_core.functional import bradley_terry_loss
from rlhf_core.interfaces import LossSum, StepStats, SupervisedTask
from rlhf_core.rewards import pair_metrics
from rlhf_core.training import by_tokens
from torch import Tensor
from torch.nn.functional import cross_entropy

from .alignment import Range

if TYPE_CHECKING:
    from .reward import EditReward

DELETED, KEPT, INSERTED = range(3)


@dataclass(frozen=True)
class Text:
    """A prompt and a response as ids; the response begins at `first`.

    words: of the response, as ranges of characters that tile it. ends: of each response token but the end of text, the
    place in the response where its characters end.
    """

    ids: list[int]
    first: int
    words: list[Range]
    ends: list[int]

    def labels(self, ranges: Sequence[Range], label: int) -> list[int]:
        """One label per id: `label` where a token ends inside one of `ranges`, KEPT elsewhere."""
        own = [label if any(start < end <= stop for start, stop in ranges) else KEPT for end in self.ends]
        return [KEPT] * self.first + own + [KEPT] * (len(self.ids) - self.first - len(own))

    def word_credits(self, credits: Sequence[float]) -> Iterator[tuple[Range, float]]:
        """The words that have tokens, each with the mean credit of its tokens: a rare word of many counts no more.

        `credits` are those of all ids.
        """
        tokens = deque(zip(self.ends, credits[self.first :], strict=False))
        for start, end in self.words:
            own = []
            while tokens and tokens[0][0] <= end:
                stop, one = tokens.popleft()
                own += [one] if stop > start else []
            if own:
                yield (start, end), sum(own) / len(own)


@dataclass(frozen=True)
class EditPair:
    """The edited and the original text with a label per id.

    margin: asked between their scores. weight: how much the edit counts.
    """

    edited: Text
    original: Text
    edited_labels: list[int]
    original_labels: list[int]
    margin: float
    weight: float


class EditTask(SupervisedTask):
    """Bradley-Terry loss of the edited over the original text, plus cross-entropy of what became of each word.

    The weighted mean over edits of `-log sigmoid(r_edited - r_original - margin)`, a centring term, and `credit_coef`
    times the cross-entropy, averaged over the response tokens of each of the two texts.

    rewrites: demonstrations among the feedback, which were left out.
    """

    def __init__(
        self, reward: EditReward, train: Sequence[EditPair], held_out: Sequence[EditPair], rewrites: int
    ) -> None:
        self.reward, self.module = reward, reward.network
        self.train, self.held_out, self.rewrites = train, held_out, rewrites

    def size(self, example: EditPair) -> int:
        return 2 * max(len(example.edited.ids), len(example.original.ids))

    def count(self, example: EditPair) -> float:
        return example.weight

    def loss(self, examples: Sequence[EditPair]) -> LossSum:
        config = self.reward.config
        scores, logits, labels, mask = self._judged(examples)
        better, worse = scores.view(2, -1)
        weight, margin = (scores.new_tensor([getattr(e, name) for e in examples]) for name in ("weight", "margin"))
        count = sum(e.weight for e in examples)
        preference = count * bradley_terry_loss(better, worse, margin=margin, weight=weight)
        centre = (weight * (better + worse) ** 2).sum()
        wrong = cross_entropy(logits.transpose(1, 2), labels, reduction="none").masked_fill(~mask, 0.0)  # (2B, S)
        words = weight * (wrong.sum(1) / mask.sum(1)).view(2, -1).sum(0)  # (B,)
        total = preference + config.center_coef * centre + config.credit_coef * words.sum()
        correct = float((weight * (better > worse)).sum())
        return LossSum(total, count, {"accuracy": correct, "word_loss": float(words.sum().detach())})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[EditPair]) -> StepStats:
        """The metrics of pairs, `credit_auc`, `credit_slope` and the number of `rewrites` that were left out.

        credit_auc: probability that an inserted token has more credit than a deleted one. credit_slope: by how much the
        score rises with the summed credit of a response's words, which is the best `span_weight`.
        """
        differences = torch.zeros(len(examples))
        found: dict[int, list[Tensor]] = {DELETED: [], INSERTED: []}
        points: list[tuple[float, float]] = []
        for rows in by_tokens([self.size(e) for e in examples], self.reward.config.micro_batch_tokens):
            part = [examples[row] for row in rows]
            scores, logits, labels, mask = self._judged(part)
            better, worse = scores.view(2, -1)
            differences[rows] = (better - worse).float().cpu()
            credits = credit(logits).float()
            for label, parts in found.items():
                parts.append(credits[mask & (labels == label)].cpu())
            texts = [e.edited for e in part] + [e.original for e in part]
            for text, score, own in zip(texts, scores.tolist(), credits.tolist(), strict=True):
                points.append((sum(of_word for _, of_word in text.word_credits(own)), score))
        stats = {**pair_metrics(differences), "rewrites": float(self.rewrites)}
        inserted, deleted = torch.cat(found[INSERTED]), torch.cat(found[DELETED])
        if len(inserted) and len(deleted):
            stats["credit_auc"] = area_under_curve(inserted, deleted)
        spread = torch.tensor(points).T.cov()
        if float(spread[0, 0]) > 1e-9:
            stats["credit_slope"] = float(spread[0, 1] / spread[0, 0])
        return stats

    def _judged(self, examples: Sequence[EditPair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of all edited texts and then all originals: scores (2B,), logits (2B, S, 3), labels and mask (2B, S).

        The mask is True on response tokens, end of text included.
        """
        texts = [e.edited for e in examples] + [e.original for e in examples]
        outputs, logits = self.reward.both([text.ids for text in texts])
        labels = torch.full(logits.shape[:2], KEPT, device=logits.device)
        mask = torch.zeros_like(labels, dtype=torch.bool)
        for row, known in enumerate([e.edited_labels for e in examples] + [e.original_labels for e in examples]):
            labels[row, : len(known)] = labels.new_tensor(known)
            mask[row, texts[row].first : len(known)] = True
        return outputs[:, 0], logits, labels, mask


def credit(logits: Tensor) -> Tensor:
    """(..., 3) to (...): P(inserted) - P(deleted), from -1 to 1."""
    chances = logits.softmax(-1)
    return chances[..., INSERTED] - chances[..., DELETED]


def area_under_curve(high: Tensor, low: Tensor) -> float:
    """Probability that one of `high` (N,) exceeds one of `low` (M,); a tie counts half."""
    ordered, _ = low.sort()
    below, not_above = torch.searchsorted(ordered, high), torch.searchsorted(ordered, high, right=True)
    return float((below + not_above).double().mean()) / 2 / len(low)
