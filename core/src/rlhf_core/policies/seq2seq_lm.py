"""The built-in policy `seq2seq-lm`: any encoder-decoder model of transformers, in the manner of T5 or BART.

The encoder reads the prompt, the decoder writes the response: two texts, with positions of their own. What a model's
generation config forces or forbids (a first token, no repetition) is not applied: what is drawn is what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..errors import ConfigError
from ..functional._tensors import wide
from .config import Seq2SeqLMConfig
from .language_model import LanguageModel
from .loading import load_seq2seq_lm
from .network import PolicyNetwork
from .text import Codec


@dataclass
class Encoded:
    """What decoding needs of the tokens so far: the encoder's states (B, P, D) of the prompts, right-padded, their
    mask (B, P), and transformers' cache of the decoder."""

    states: Tensor
    mask: Tensor
    past: Any = None

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        self.states, self.mask = self.states[rows], self.mask[rows]
        self.past.batch_select_indices(rows)


class Seq2SeqNetwork(PolicyNetwork):
    """An encoder-decoder model: the encoder reads the prompt, the decoder a start token and the response."""

    def step(self, ids: Tensor, attention: Tensor, cache: Encoded | None = None) -> tuple[Tensor, Tensor, Any]:
        with self.speaking(self.role), self._hidden_states() as caught:
            if cache is None:
                cache = self._encode(ids, attention)
                ids = self._start(ids)
            inputs = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=cache.states),
                "attention_mask": cache.mask.long(),
                "decoder_input_ids": ids,
                "decoder_attention_mask": _behind_start(attention[:, cache.mask.shape[1] :]),
            }
            output = self._call(inputs, keep=1, past_key_values=cache.past, use_cache=True)
        cache.past = output.past_key_values
        return wide(output.logits[:, -1]), caught[0][:, -1], cache

    def inputs(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, attention: Tensor
    ) -> dict[str, Any]:
        ids, mask = to_left_edge(prompt_ids, prompt_mask)
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "decoder_input_ids": torch.cat([self._start(response_ids), response_ids], 1),
            "decoder_attention_mask": _behind_start(attention),
        }

    def _encode(self, ids: Tensor, attention: Tensor) -> Encoded:
        ids, mask = to_left_edge(ids, attention)
        states = self.model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Encoded(states, mask)

    def _start(self, like: Tensor) -> Tensor:
        """(B, 1): what the decoder starts from."""
        return like.new_full((len(like), 1), self.model.config.decoder_start_token_id)


class Seq2SeqLM(LanguageModel[Seq2SeqLMConfig]):
    """An encoder-decoder model: the prompt is read, and the response is a text of its own."""

    network_class = Seq2SeqNetwork
    task_type = "SEQ_2_SEQ_LM"
    auto_head = "Seq2SeqLM"

    def load(self, config: Seq2SeqLMConfig) -> tuple[Any, Any]:
        return load_seq2seq_lm(config, self.context)

    def make_codec(self, model: Any) -> Codec:
        # relative positions (T5) have no end, whatever `n_positions` says they were trained with
        positions = getattr(model.config, "max_position_embeddings", None)
        return Codec(self.tokenizer, positions, self.config.max_prompt_tokens, self.context.where, apart=True)

    def start_critic(self, trunk: nn.Module, head: nn.Linear) -> None:
        raise ConfigError(
            f"{self.context.where} critic",
            "a reward model's network reads one text, and this critic is an encoder-decoder",
            "a critic that begins as the policy",
            "leave critic_from out",
        )


def to_left_edge(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """ids and mask (B, P) with the rows moved to the left edge, so that positions count from their first token."""
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def _behind_start(attention: Tensor) -> Tensor:
    """The decoder's mask (B, T + 1) for responses of mask (B, T)."""
    return torch.cat([attention.new_ones(len(attention), 1), attention], 1).long()
