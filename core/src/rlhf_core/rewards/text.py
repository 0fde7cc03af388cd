"""The base of rewards that read prompt and response with a network of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..interfaces import Context, RewardModel, State, StepStats
from ..policies.base import copy_into
from ..policies.text import Codec, pad_right
from ..records import Feedback, Prompt, Sample, Scores
from ..training import by_tokens, fit_task
from .config import TextRewardConfig
from .network import TextNetwork, load_trunk, longest_text

C = TypeVar("C", bound=TextRewardConfig)
E = TypeVar("E")


class TextReward(RewardModel[C]):
    """A network over whole texts; a subclass says in `task` what it learns from feedback.

    The score is the network's first output. A subclass with other heads overrides `make_network`, and `score` if the
    score is something else.
    """

    def __init__(self, config: C, context: Context) -> None:
        super().__init__(config, context)
        found = load_trunk(config, context)
        self.network = self.make_network(found.model, found.model.config.get_text_config().hidden_size)
        self.network.base, self.network.role = found.base, found.role
        self.network.to(context.device).eval()
        self.max_tokens = longest_text(found.model, found.tokenizer, config.max_tokens)
        self.codec = Codec(found.tokenizer, None, None, context.where)
        self._openers = {found.tokenizer.bos_token_id, found.tokenizer.cls_token_id} - {None}

    def make_network(self, trunk: nn.Module, hidden_size: int) -> TextNetwork:
        """The network over `trunk`, whose last hidden states are of size `hidden_size`."""
        return TextNetwork(trunk, hidden_size, self.config.pooling, self.generator())

    def generator(self) -> torch.Generator:
        """What the head's weights are drawn from; every call gives the same one anew."""
        return torch.Generator().manual_seed(self.context.stream("head"))

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """The ids of a whole text, the same way in training and in scoring."""
        question, answer = self.encode_parts(prompt, response)
        return [*question, *answer]

    def encode_parts(self, prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
        """The ids of prompt and response, together at most `max_tokens`."""
        question, answer = self.codec.encode_prompt(prompt, 0), self.codec.encode_response(prompt, response)
        if len(answer) >= self.max_tokens:
            answer = [*answer[: self.max_tokens - 2], self.codec.eos]
        too_long = len(question) + len(answer) - self.max_tokens
        if too_long > 0:
            kept = int(question[0] in self._openers)  # models lean on the token that opens every text
            question = question[:kept] + question[kept + too_long :]
        return question, answer

    def outputs(self, texts: Sequence[list[int]]) -> Tensor:
        """(B, K): the network's outputs for encoded texts, with gradient if gradients are on."""
        ids, mask = pad_right(texts, self.codec.pad, self.context.device)
        with self.context.autocast():
            outputs: Tensor = self.network(ids, mask)
        return outputs

    def scores(self, texts: Sequence[list[int]]) -> Tensor:
        """(B,) scores of encoded texts, with gradient if gradients are on."""
        return self.outputs(texts)[:, 0]

    @torch.no_grad()
    def predict(self, texts: Sequence[list[int]]) -> Tensor:
        """(B, K): outputs for any number of encoded texts, without dropout or gradient, within the token budget."""
        self.network.eval()
        whole: Tensor | None = None
        for rows in by_tokens([len(text) for text in texts], self.config.micro_batch_tokens):
            part = self.outputs([texts[row] for row in rows])
            whole = part.new_zeros(len(texts), part.shape[1]) if whole is None else whole
            whole[rows] = part
        return torch.zeros(0, self.network.head.out_features) if whole is None else whole

    def score(self, samples: Sequence[Sample]) -> Scores:
        texts = [self.encode(sample.prompt, sample.response) for sample in samples]
        return Scores(self.predict(texts)[:, 0].float())

    def split(
        self, feedback: Iterable[Feedback], kinds: tuple[type[Any], ...], examples: Callable[[Any], Iterable[E]]
    ) -> tuple[list[E], list[E]]:
        """Training and held-out examples of the records, split by prompt; records of weight 0 are left out.

        Args:
            kinds: classes of records that can be learnt from. examples: what a record gives.

        Raises:
            DataError: a record of another kind.
        """
        train: list[E] = []
        held_out: list[E] = []
        for record in feedback:
            if not isinstance(record, kinds):
                wanted = " or ".join(f"{kind.__name__.lower()}s" for kind in kinds)
                raise DataError(
                    self.context.where,
                    f"feedback of kind {record.kind!r}",
                    wanted,
                    f"name a feedback source of {wanted} in the fit-reward stage",
                )
            if record.weight > 0:
                side = held_out if record.prompt.in_share(self.config.held_out) else train
                side.extend(examples(record))
        return train, held_out

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        task = self.task(feedback)
        if task is None:
            return super().fit(feedback)
        return fit_task(task, self.config, self.context)

    def state_dict(self) -> State:
        return {"weights": self.network.own()}

    def load_state_dict(self, state: State) -> None:
        copy_into(self.network.own(), state["weights"], f"{self.context.where} checkpoint")
