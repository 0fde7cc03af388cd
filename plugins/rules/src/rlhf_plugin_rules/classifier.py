"""Any sequence classifier of transformers as a reward: what it gives to one label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Context, RewardModel
from rlhf_core.policies import complete_tokenizer, load_pretrained, pad_right
from rlhf_core.records import Sample, Scores
from rlhf_core.rewards import longest_text
from rlhf_core.training import by_tokens
from torch import Tensor

from .config import ClassifierConfig


class Classifier(RewardModel[ClassifierConfig]):
    """The probability (or logit) of a label, as the model was trained: softmax over labels that exclude each other,
    sigmoid where several may hold or there is only one.

    The weights are the ones that were loaded and never change, so there is no state.

    Raises:
        ConfigError: nothing can be loaded, the model has no trained classification head or no such label, or it is a
            regression that knows no probability.
    """

    def __init__(self, config: ClassifierConfig, context: Context) -> None:
        super().__init__(config, context)
        self.model, self.tokenizer = _load(config, context)
        self._label = _label_index(self.model.config, config.label, context)
        kind, labels = self.model.config.problem_type, self.model.config.num_labels
        if kind == "regression" and config.value == "probability":
            raise ConfigError(f"{context.where} value", f"{config.model!r} is a regression, which knows no probability",
                              "`logit`, the number that it predicts", "set value: logit")  # fmt: skip
        self._exclusive = labels > 1 and kind != "multi_label_classification"
        self.max_tokens = longest_text(self.model, self.tokenizer, config.max_tokens)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        texts = [self._encode(sample) for sample in samples]
        values = torch.zeros(len(texts), device=self.context.device)
        for rows in by_tokens([len(ids) for ids, _ in texts], self.config.micro_batch_tokens):
            logits = self._logits([texts[row] for row in rows])  # (R, labels)
            if self.config.value == "probability":
                logits = logits.softmax(1) if self._exclusive else logits.sigmoid()
            values[rows] = logits[:, self._label]
        return Scores(values)

    def _logits(self, texts: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        device = self.context.device
        ids, mask = pad_right([ids for ids, _ in texts], self.tokenizer.pad_token_id, device)
        options = {}
        if "token_type_ids" in self.tokenizer.model_input_names:
            options["token_type_ids"], _ = pad_right([types for _, types in texts], 0, device)
        with self.context.autocast():
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask.long(), **options).logits
        return logits.float()

    def _encode(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Token ids, and for each which segment it is of (0 everywhere but in the second of a pair)."""
        prompt, response = sample.prompt, sample.response
        if self.config.of == "response":
            encoded = self.tokenizer(response, truncation=True, max_length=self.max_tokens)
        elif self.tokenizer.chat_template:  # a reward model for chats reads the whole chat
            chat = [*prompt.messages, {"role": "assistant", "content": response}]
            text = self.tokenizer.apply_chat_template(chat, tokenize=False)
            encoded = self.tokenizer(text, add_special_tokens=False)
        else:
            encoded = self.tokenizer(prompt.render(), response)
            if len(encoded["input_ids"]) > self.max_tokens:
                pair = self._shortened(prompt.render(), response)
                encoded = self.tokenizer(*pair, truncation=True, max_length=self.max_tokens)
        ids = encoded["input_ids"][-self.max_tokens :] or [self.tokenizer.eos_token_id]  # an empty text is its end
        types = encoded.get("token_type_ids", [])[-self.max_tokens :]
        return list(ids), list(types) if len(types) == len(ids) else [0] * len(ids)

    def _shortened(self, prompt: str, response: str) -> tuple[str, str]:
        """The end of the prompt and the beginning of the response that fit together, the response first."""
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=True)
        ends = [end for _, end in self._offsets(response)]
        if len(ends) > room:
            return "", response[: ends[room - 1]]
        starts = [start for start, _ in self._offsets(prompt)]
        kept = room - len(ends)
        return prompt[starts[-kept] :] if kept < len(starts) else prompt, response

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        return offsets


def _load(config: ClassifierConfig, context: Context) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    model, found = load_pretrained(AutoModelForSequenceClassification, config.model, context,
                                   dtype=context.torch_dtype, output_loading_info=True, **options)  # fmt: skip
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(context.where, f"{config.model!r} has no weights for {', '.join(missing[:3])}: they would be "
                          "random", "a model with a trained classification head",
                          "choose one that was saved as ...ForSequenceClassification")  # fmt: skip
    tokenizer = load_pretrained(AutoTokenizer, config.model, context, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = model.config.get_text_config().pad_token_id
    complete_tokenizer(tokenizer, context)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # decoders look for the last token before it
    model.config.use_cache = False  # nothing is generated here
    return model.to(context.device).eval(), tokenizer


def _label_index(model: Any, label: str | int, context: Context) -> int:
    """The index of a label of a transformers config, from its index, its name, or its name but for case."""
    names = {int(index): str(name) for index, name in model.id2label.items()}
    if label in names:
        return int(label)
    for same in (str.__eq__, lambda a, b: a.casefold() == b.casefold()):
        if found := [index for index, name in names.items() if same(name, str(label))]:
            return found[0]
    listed = ", ".join(f"{name!r} ({index})" for index, name in sorted(names.items())[:20])
    raise ConfigError(f"{context.where} label", f"{label!r} is no label of this model", f"one of {listed}",
                      "take a name or an index from the list")  # fmt: skip
