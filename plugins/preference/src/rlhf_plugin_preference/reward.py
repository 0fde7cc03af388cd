"""The Bradley-Terry reward model: P(a over b) = sigmoid(r(a) - r(b)).

Bradley and Terry (1952); for language models Stiennon et al. (2020), arXiv:2009.01325, with the margin of Llama 2
(Touvron et al., 2023, arXiv:2307.09288) and the centring of Eisenstein et al. (2023), arXiv:2312.09244. Of a ranking
every ordered pair is an example; ties say nothing to this model and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.functional import bradley_terry_loss
from rlhf_core.interfaces import Context, LossSum, RewardModel, State, StepStats, SupervisedTask
from rlhf_core.policies.text import Codec, pad_right
from rlhf_core.records import Comparison, Feedback, Prompt, Sample, Scores
from rlhf_core.training import by_tokens, fit_task
from torch import Tensor

from .config import PreferenceRewardConfig
from .network import ScalarModel, build


@dataclass(frozen=True)
class Pair:
    """A better and a worse text as ids, and the margin asked between their scores."""

    better: list[int]
    worse: list[int]
    margin: float


class PreferenceReward(RewardModel[PreferenceRewardConfig]):
    """Scores a response in the unit of log-odds of being preferred."""

    def __init__(self, config: PreferenceRewardConfig, context: Context) -> None:
        super().__init__(config, context)
        self.model, tokenizer, self.max_tokens = build(config, context)
        self.codec = Codec(tokenizer, None, None, context.where)
        self._openers = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """The ids of a whole text, the same way in training and in scoring."""
        question, answer = self.codec.encode_prompt(prompt, 0), self.codec.encode_response(prompt, response)
        if len(answer) >= self.max_tokens:
            answer = [*answer[: self.max_tokens - 2], self.codec.eos]
        too_long = len(question) + len(answer) - self.max_tokens
        if too_long > 0:
            kept = int(question[0] in self._openers)  # models lean on the token that opens every text
            question = question[:kept] + question[kept + too_long :]
        return [*question, *answer]

    def scores(self, texts: Sequence[list[int]]) -> Tensor:
        """(B,) scores of encoded texts, with gradient if gradients are on."""
        ids, mask = pad_right(texts, self.codec.pad, self.context.device)
        with self.context.autocast():
            scores: Tensor = self.model(ids, mask)
        return scores

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        self.model.eval()
        texts = [self.encode(sample.prompt, sample.response) for sample in samples]
        values = torch.zeros(len(texts), device=self.context.device)
        for rows in by_tokens([len(text) for text in texts], self.config.micro_batch_tokens):
            values[rows] = self.scores([texts[row] for row in rows]).to(values)
        return Scores(values)

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask:
        return PreferenceTask(self, feedback)

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        return fit_task(self.task(feedback), self.config, self.context)

    def state_dict(self) -> State:
        return {"weights": dict(self.model.state_dict())}

    def load_state_dict(self, state: State) -> None:
        try:
            self.model.load_state_dict(state["weights"])
        except RuntimeError as error:
            wrong = [line.strip() for line in str(error).splitlines()[1:]]
            raise ConfigError(
                f"{self.context.where} checkpoint",
                f"{len(wrong)} complaints: {wrong[0][:160]}",
                "weights of the same model",
                "use the configuration that they were saved with",
            ) from error


class PreferenceTask(SupervisedTask):
    """-log sigmoid(r_better - r_worse - margin), plus the centring term, averaged over pairs; split by prompt."""

    def __init__(self, reward: PreferenceReward, feedback: Iterable[Feedback]) -> None:
        self.reward, self.config = reward, reward.config
        train: list[Pair] = []
        held_out: list[Pair] = []
        for record in feedback:
            if not isinstance(record, Comparison):
                raise DataError(reward.context.where, f"feedback of kind {record.kind!r}", "comparisons",
                                "name a feedback source of comparisons in the fit-reward stage")  # fmt: skip
            side = held_out if record.prompt.in_share(self.config.held_out) else train
            # of a ranking nobody said how far apart each pair is
            margin = record.margin if self.config.use_margin and len(record.responses) == 2 else None
            side += [Pair(reward.encode(record.prompt, better), reward.encode(record.prompt, worse), margin or 0.0)
                     for better, worse in record.pairs()]  # fmt: skip
        self.module: ScalarModel = reward.model
        self.train, self.held_out = train, held_out

    def size(self, example: Pair) -> int:
        return 2 * max(len(example.better), len(example.worse))

    def count(self, example: Pair) -> float:
        return 1.0

    def loss(self, examples: Sequence[Pair]) -> LossSum:
        better, worse = self._both(examples)
        margin = torch.tensor([e.margin for e in examples], device=better.device)
        n = len(examples)
        loss = n * bradley_terry_loss(better, worse, margin=margin, label_smoothing=self.config.label_smoothing)
        centre = ((better + worse) ** 2).sum()
        correct = float((better > worse).sum())
        return LossSum(loss + self.config.center_coef * centre, n, {"accuracy": correct})

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Pair]) -> StepStats:
        """`accuracy` (a tie counts half), `margin` (mean difference), `loss`, `ece` and the number of `pairs`."""
        differences = torch.zeros(len(examples))
        for rows in by_tokens([self.size(e) for e in examples], self.config.micro_batch_tokens):
            better, worse = self._both([examples[row] for row in rows])
            differences[rows] = (better - worse).float().cpu()
        accuracy = (differences > 0).float() + 0.5 * (differences == 0).float()
        return {
            "accuracy": float(accuracy.mean()), "margin": float(differences.mean()),
            "loss": float(torch.nn.functional.softplus(-differences).mean()),
            "ece": calibration_error(differences), "pairs": float(len(examples)),
        }  # fmt: skip

    def _both(self, examples: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Scores of the better and of the worse texts, each (B,), in one forward pass."""
        scores = self.reward.scores([e.better for e in examples] + [e.worse for e in examples])
        return scores[: len(examples)], scores[len(examples) :]


def calibration_error(differences: Tensor, bins: int = 10) -> float:
    """Expected calibration error of pairwise predictions (Guo et al., 2017, arXiv:1706.04599).

    The model's confidence in its own choice is sigmoid(|d|), between 1/2 and 1; it is right where d > 0. The error is
    the mean distance of confidence and accuracy over `bins` equal bins of confidence, weighted by their counts.

    Args:
        differences: (N,) score of the better minus the worse response.
    """
    confidence = torch.sigmoid(differences.abs())
    right = (differences > 0).float() + 0.5 * (differences == 0).float()
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in range(bins):
        inside = place == b
        if bool(inside.any()):
            error += float((confidence[inside].mean() - right[inside].mean()).abs()) * int(inside.sum())
    return error / max(len(differences), 1)
