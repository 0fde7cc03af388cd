"""A reward learnt from edits: how good a response is, and which of its words people would change.

The score is Bradley and Terry's (1952): the edited text over the original, with a margin that grows with the share of
changed words. The credit of a word is P(inserted) - P(deleted): what the alignment says of it, -1, 0 or 1 (as in SALT,
Yao et al., 2023, arXiv:2310.05857), as a learnt expectation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, SupervisedTask
from rlhf_core.policies.text import pad_right
from rlhf_core.records import Demonstration, Edit, Feedback, Prompt, Sample, Scores, Span
from rlhf_core.rewards.text import TextReward
from rlhf_core.training import by_tokens
from torch import Tensor, nn

from .alignment import align, pieces
from .config import EditRewardConfig
from .network import DELETED, INSERTED, EditNetwork, credit
from .task import EditPair, EditTask, Text

NEGLIGIBLE = 0.02  # words with less credit earn nothing of their own


class EditReward(TextReward[EditRewardConfig]):
    """Scores a response in log-odds of being the edited one, with spans for the words that earn or cost something.

    Spans move part of the score to where it is earned; the score is the same with and without them.
    """

    network: EditNetwork

    def __init__(self, config: EditRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        tokenizer = self.codec.tokenizer
        if not tokenizer.is_fast:
            raise ConfigError(
                context.where,
                f"{type(tokenizer).__name__} does not say where its tokens stand in a text",
                "a fast tokenizer",
                "choose a model that comes with a tokenizer.json",
            )

    def make_network(self, trunk: nn.Module, hidden_size: int) -> EditNetwork:
        return EditNetwork(trunk, hidden_size, self.config.pooling, self.generator())

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
        tokenizer: Any = self.codec.tokenizer
        chat = not isinstance(prompt.text, str) and tokenizer.chat_template
        text = response if chat else prompt.render_response(response)  # as Codec.encode_response has it
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        shift = len(text) - len(response)
        ends = [end - shift for _, end in offsets[: len(answer) - 1]]
        return Text([*question, *answer], len(question), pieces(response), ends)

    def judge(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B,), token logits (B, S, 3), and mask (B, S), True on response tokens."""
        ids, mask = pad_right([text.ids for text in texts], self.codec.pad, self.context.device)
        with self.context.autocast():
            scores, logits = self.network.judge(ids, mask)
        first = torch.tensor([[text.first] for text in texts], device=ids.device)  # (B, 1)
        return scores, logits, mask & (torch.arange(ids.shape[1], device=ids.device) >= first)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        self.network.eval()
        texts = [self.read(sample.prompt, sample.response) for sample in samples]
        values = torch.zeros(len(texts), device=self.context.device)
        spans: list[tuple[Span, ...]] = [()] * len(texts)
        for rows in by_tokens([len(text.ids) for text in texts], self.config.micro_batch_tokens):
            scores, logits, _ = self.judge([texts[row] for row in rows])
            values[rows] = scores.float()
            for row, credits in zip(rows, credit(logits).tolist(), strict=True):
                spans[row] = self._spans(samples[row].response, texts[row], credits)
        earned = values.new_tensor([sum(span.credit for span in row) for row in spans])
        return Scores(values, tuple(spans) if self.config.span_weight else None, parts={"spans": earned})

    def _spans(self, response: str, text: Text, credits: Sequence[float]) -> tuple[Span, ...]:
        """One span per word with credit."""
        return tuple(
            Span(start, end, self.config.span_weight * of_word)
            for (start, end), of_word in text.word_credits(credits)
            if abs(of_word) >= NEGLIGIBLE and response[start:end].strip()
        )
