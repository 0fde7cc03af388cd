"""transformers' own continuous batching as an engine: a paged cache, filled by a scheduler in a thread of its own.

It computes with the policy's own module, so nothing is copied and a change of the weights needs no word. Mixed
precision does not reach the thread: tokens are drawn in the precision of the weights. With flash attention on a GPU
each response reads its own part of the cache; with any other attention every token is held against the whole cache
under a mask, which costs more the more responses are drawn at a time.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, RunError
from ..interfaces import Drawn, Generator, Policy, Sampling
from ..memory import is_out_of_memory
from ..randomness import derive_seed
from .attention import NAME
from .config import ContinuousConfig
from .decoders import opened
from .network import PolicyNetwork
from .text import Codec, pad_right

INSTEAD = "choose the engine `refill`"
PROMPT_TOKENS = 2048  # most tokens of prompts that are read at a time


class Continuous(Generator[ContinuousConfig]):
    """Draws by `generate_batch`'s manager. A draw is seeded as a whole: the same samples together give the same again.

    It records log-probabilities where it computes as the policy does: float32 weights or wider, and no mixed precision.
    """

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
            ConfigError: the policy or the sampling is one that transformers' continuous batching draws wrongly or not
                at all.
            RunError: its thread has failed.
        """
        network, codec = opened(policy, self.context.where)
        self._check_policy(network)
        self._check_sampling(sampling)
        model = network.model
        seed = derive_seed(seed, "continuous", *sample_ids)
        cuda = [model.device.index or 0] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), network.speaking(network.role), _attention_kept(model), _frozen():
            results = self._run(model, codec, [list(p) for p in prompts], sampling, seed) if prompts else []
        rows = [result.generated_tokens for result in results]
        ids, attention = pad_right(rows, codec.pad, model.device)
        logprobs = _padded([result.logprobs for result in results], ids)
        exact = torch.finfo(model.dtype).bits >= 32 and not torch.is_autocast_enabled(model.device.type)
        narrowed = sampling.heat > 0 and sampling.truncates  # what was recorded is of fewer tokens than all
        behaviour = None
        if sampling.truncates:  # the likeliest token is drawn with certainty
            behaviour = logprobs if narrowed else torch.zeros_like(logprobs)
        return Drawn(
            ids,
            attention,
            torch.tensor([row[-1] != codec.eos for row in rows], dtype=torch.bool, device=model.device),
            logprobs=logprobs if exact and not narrowed else None,
            behaviour=behaviour,
        )

    def _check_policy(self, network: PolicyNetwork) -> None:
        """Raises ConfigError for what would be drawn wrongly, in most cases without a word from transformers."""
        model = network.model
        kind = model.config.model_type
        got = ""
        if network.steering:
            got = "a policy that action values steer"
        elif model.config.is_encoder_decoder:
            got = f"an encoder-decoder ({kind})"
        elif not model._supports_attention_backend:
            got = f"{kind!r}, whose attention transformers cannot exchange for one over a paged cache"
        elif getattr(model.config.get_text_config(), "attn_logit_softcapping", None) and not _flash(model):
            got = f"{kind!r}, whose capped attention needs flash attention here"
        if got:
            raise ConfigError(
                self.context.where, got, "a decoder-only model with exchangeable attention, without steering", INSTEAD
            )

    def _check_sampling(self, sampling: Sampling) -> None:
        """Raises ConfigError for what transformers' continuous batching has no means for."""
        for name, given in (("stop", sampling.stop), ("min_new_tokens", sampling.min_new_tokens)):
            if given:
                raise ConfigError(
                    f"{self.context.where} {name}",
                    f"{name}: {list(given) if isinstance(given, tuple) else given}",
                    "none: transformers' continuous batching ends a response at its end of text or its length",
                    f"leave `{name}` out, or {INSTEAD}",
                )

    def _run(self, model: Any, codec: Codec, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[Any]:
        """One result of transformers per prompt. Its thread has ended, and its cache is gone, when this returns.

        Raises:
            ConfigError: transformers does not know how to batch the model. RunError: its thread has failed.
        """
        try:
            manager = model.init_continuous_batching(
                _generation(sampling, codec), self._batching(model, prompts, sampling, seed)
            )
        except ValueError as error:
            raise ConfigError(
                self.context.where,
                f"{model.config.model_type!r}, which transformers does not batch: {error}",
                "a decoder-only model with attention in every layer",
                INSTEAD,
            ) from error
        try:
            manager.start()
            return _collected(manager, manager.add_requests(prompts, max_new_tokens=sampling.max_new_tokens))
        except _Failed as failed:
            cause = manager.background_thread_status.fatal_error
            if cause is not None and is_out_of_memory(cause):
                raise cause from None
            raise RunError(
                self.context.where, f"transformers' continuous batching failed: {failed}", fix=INSTEAD
            ) from cause
        finally:
            manager.stop(block=True, hard_stop=True)  # nothing is left to do, or nothing more is wanted
            manager.destroy()

    def _batching(self, model: Any, prompts: list[list[int]], sampling: Sampling, seed: int) -> Any:
        """transformers' settings: a cache that holds all slots at full length, and no more."""
        from transformers import ContinuousBatchingConfig

        half = model.device.type == "cuda" and model.dtype in (torch.float16, torch.bfloat16)
        page = 256 if half else 32  # flash attention reads pages of 256
        slots = min(self.config.slots, len(prompts))
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        return ContinuousBatchingConfig(
            page_size=page,
            num_blocks=math.ceil(1.1 * slots * math.ceil(longest / page)) + 1,  # new prompts wait for a tenth free
            max_requests_per_batch=slots,
            max_batch_tokens=max(slots, min(sum(map(len, prompts)), PROMPT_TOKENS)),
            auto_switch_to_flash=half,
            return_logprobs=True,
            seed=seed,
        )


class _Failed(Exception):
    """What transformers' thread says of its end."""


def _collected(manager: Any, wanted: list[str]) -> list[Any]:
    """The results of the requests `wanted`, in their order.

    Raises:
        _Failed: one has failed, or the thread has ended without it.
    """
    found: dict[str, Any] = {}
    while len(found) < len(wanted):
        alive = manager.is_running()
        result = manager.get_result(timeout=1)
        if result is None and not alive:
            raise _Failed(manager.background_thread_status.fatal_error or "its thread has ended early")
        if result is not None and result.error is not None:
            raise _Failed(result.error)
        if result is not None and result.is_finished():
            found[result.request_id] = result
    return [found[name] for name in wanted]


def _generation(sampling: Sampling, codec: Codec) -> Any:
    from transformers import GenerationConfig

    drawing = {"temperature": sampling.heat, "top_k": sampling.top_k, "top_p": sampling.top_p} if sampling.heat else {}
    return GenerationConfig(
        do_sample=bool(sampling.heat),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=codec.eos,
        pad_token_id=codec.pad,
        **drawing,
    )


def _flash(model: Any) -> bool:
    return "flash" in str(model.config._attn_implementation)


@contextmanager
def _attention_kept(model: Any) -> Iterator[None]:
    """Whatever attention is switched to inside, the model has its own again afterwards."""
    before = model.config._attn_implementation
    try:
        if before == NAME:  # transformers pages only what it knows by name
            model.set_attn_implementation("sdpa")
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


@contextmanager
def _frozen() -> Iterator[None]:
    """Inside, Python looks for garbage only in what is made inside.

    transformers collects it twice at the end of a draw; in all that a run holds that took .8 s.
    """
    already = gc.get_freeze_count()
    if not already:
        gc.freeze()
    try:
        yield
    finally:
        if not already:
            gc.unfreeze()


def _padded(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """(B, T) float32 with the rows at the left edge and 0 behind them, shaped as `like`."""
    values = torch.zeros(like.shape, dtype=torch.float32)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return values.to(like.device)
