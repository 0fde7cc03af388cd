"""A reward learnt from edits: how good a response is, and which of its words people would change.

The score is Bradley and Terry's (1952): the edited text over the original, with a margin that grows with the share of
changed words. The credit of a word is P(inserted) - P(deleted): what the alignment says of it, -1, 0 or 1 (as in SALT,
Yao et al., 2023, arXiv:2310.05857), as a learnt expectation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from rlhf_core.interfaces import SupervisedTask
from rlhf_core.records import Demonstration, Edit, Feedback, Prompt, Sample, Scores, Span
from rlhf_core.rewards import CreditNetwork, CreditReward
from rlhf_core.segmentation import pieces
from torch import nn

from .alignment import align
from .config import EditRewardConfig
from .task import DELETED, INSERTED, EditPair, EditTask, Text, credit

NEGLIGIBLE = 0.02  # words with less credit earn nothing of their own


class EditReward(CreditReward[EditRewardConfig]):
    """Scores a response in log-odds of being the edited one, with spans for the words that earn or cost something.

    Spans move part of the score to where it is earned; the score is the same with and without them.

    A decoder's token sees the prompt and what stands before it, so its credit judges saying this word here, whatever
    follows.
    """

    def make_network(self, trunk: nn.Module, hidden_size: int) -> CreditNetwork:
        return CreditNetwork(trunk, hidden_size, self.config.pooling, self.generator(), credits=3)

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        rewrites = 0

        def pairs(record: Edit | Demonstration) -> Iterable[EditPair]:
            nonlocal rewrites
            if isinstance(record, Edit):
                return self._pairs(record)
            rewrites += 1
            return ()

        train, held_out = self.split(feedback, (Edit, Demonstration), pairs)
        return EditTask(self, train, held_out, rewrites)

    def _pairs(self, record: Edit) -> Iterable[EditPair]:
        """The edit as an example; none if nothing was changed, or only what `max_tokens` cuts off."""
        found = align(record.original, record.edited)
        edited, original = self.read(record.prompt, record.edited), self.read(record.prompt, record.original)
        if edited.ids != original.ids:
            yield EditPair(
                edited,
                original,
                edited.labels(found.inserted, INSERTED),
                original.labels(found.deleted, DELETED),
                self.config.margin * found.distance,
                record.weight,
            )

    def read(self, prompt: Prompt, response: str) -> Text:
        """The ids of a whole text and where its tokens stand in the response."""
        question, answer = self.encode_parts(prompt, response)
        ranges = self.codec.token_ranges(prompt, response, answer)
        return Text([*question, *answer], len(question), pieces(response), [end for _, end in ranges[:-1]])

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        texts = [self.read(sample.prompt, sample.response) for sample in samples]
        outputs, logits = self.predict_both([text.ids for text in texts])
        spans = tuple(
            self._spans(sample.response, text, credit(own).tolist())
            for sample, text, own in zip(samples, texts, logits, strict=True)
        )
        earned = outputs.new_tensor([sum(span.credit for span in row) for row in spans])
        return Scores(outputs[:, 0], spans if self.config.span_weight else None, parts={"spans": earned})

    def _spans(self, response: str, text: Text, credits: Sequence[float]) -> tuple[Span, ...]:
        """One span per word with credit."""
        return tuple(
            Span(start, end, self.config.span_weight * of_word)
            for (start, end), of_word in text.word_credits(credits)
            if abs(of_word) >= NEGLIGIBLE and response[start:end].strip()
        )
