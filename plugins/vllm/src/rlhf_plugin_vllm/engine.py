"""A vLLM server draws the responses of a policy that is trained here.

The server holds a copy of the model. Before a draw it is sent the policy's weights, if they are others than at the last
one: after a step of an optimizer, and whenever the reference begins or ends to speak. Adapters are merged first.

Each sample is a request of its own with a seed of its own: vLLM gives all prompts of one request the same seed, and
equal prompts, the groups of GRPO, would get equal responses.

vLLM computes in its own precision and with its own kernels, so its log-probabilities are not asked for: the policy
evaluates what was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from rlhf_core.errors import ConfigError, RunError
from rlhf_core.interfaces import Drawn, Generator, Policy, Sampling
from rlhf_core.policies import Codec, LanguageModel, pad_right
from rlhf_core.randomness import derive_seed

from .config import VLLMConfig
from .server import Server
from .weights import Print, fingerprint, plain_weights

AT_A_TIME = 64  # requests under way; as many connections as TRL's client keeps


class VLLM(Generator[VLLMConfig]):
    """Draws over TRL's client. A sample's seed depends on (seed, its id) alone; vLLM may still round by the batch."""

    _sent: Print | None = None
    """The weights that the server has."""
    _model = "MODEL"

    def draw(
        self,
        policy: Policy[Any],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sample_ids: Sequence[int],
    ) -> Drawn:
        """See `Generator.draw`.

        Raises:
            ConfigError: the policy is not one that vLLM can hold; vLLM is not installed; no server is reached, or it
                was started without what sending weights needs.
            RunError: the server fails, or answers with what was not asked for.
        """
        if not isinstance(policy, LanguageModel):
            raise ConfigError(
                self.context.where,
                f"a policy of class {type(policy).__name__}",
                "one of the core's, whose weights it can read",
                "let the policy draw by itself",
            )
        self._check(policy)
        codec, device = policy.codec, policy.network.model.device
        self._sync(policy, device)
        options = {
            "temperature": sampling.heat,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
        }
        more: dict[str, Any] = {"min_tokens": sampling.min_new_tokens, "stop_token_ids": [codec.eos]}
        if sampling.stop:
            more["stop"] = list(sampling.stop)

        def one(prompt: Sequence[int], number: int) -> list[int]:
            own = {**more, "seed": derive_seed(seed, "vllm", number)}
            return self._checked(self.server.complete(list(prompt), options, own), sampling.max_new_tokens)

        with ThreadPoolExecutor(max_workers=AT_A_TIME) as threads:
            rows = list(threads.map(one, prompts, sample_ids))
        ids, attention = pad_right(rows, codec.pad, device)
        cut = [_cut(row, sampling, codec) for row in rows]
        return Drawn(ids, attention, torch.tensor(cut, dtype=torch.bool, device=device))

    def _check(self, policy: LanguageModel[Any]) -> None:
        """Raises ConfigError for a policy whose responses its weights alone do not decide, or that vLLM cannot hold."""
        config = policy.network.model.config
        got = "a policy that action values steer" if policy.steering else ""
        if config.is_encoder_decoder:
            got = f"an encoder-decoder ({config.model_type})"
        if got:
            raise ConfigError(
                self.context.where, got, "a decoder-only model without steering", "choose the engine `refill`"
            )
        self._model = policy.config.model or self._model

    @cached_property
    def server(self) -> Server:
        """The server, once it is up."""
        return Server(self.config, self.context.where, self._model)

    def _sync(self, policy: LanguageModel[Any], device: torch.device) -> None:
        """Send the weights if they are others than the server's; over several processes the main one sends."""
        now = fingerprint(policy.network)
        if now == self._sent:
            return
        self._sent = None  # unknown, if what follows fails
        accelerator = self.context.accelerator
        if accelerator is not None:
            accelerator.wait_for_everyone()  # no other still draws with the weights before
        if accelerator is None or accelerator.is_main_process:
            self.server.send(plain_weights(policy.network), device)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        self._sent = now

    def _checked(self, row: list[int], longest: int) -> list[int]:
        """Raises RunError for a response of no tokens, or of more than were asked for."""
        if not 0 < len(row) <= longest:
            raise RunError(
                self.context.where,
                f"a response of {len(row)} tokens from {self.server.url}",
                f"1 to {longest}, as asked",
                "serve with the vLLM versions that the installed TRL names",
            )
        return row


def _cut(row: list[int], sampling: Sampling, codec: Codec) -> bool:
    """Whether a response ends at the length limit, with neither an end of text nor a stop string."""
    if len(row) < sampling.max_new_tokens or row[-1] == codec.eos:
        return False
    text = codec.decode(row) if sampling.stop else ""
    return not any(stop in text for stop in sampling.stop)
