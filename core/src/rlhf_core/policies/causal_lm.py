"""The built-in policy `causal-lm`: any decoder-only model of transformers, fully fine-tuned or with LoRA.

The reference is not a second model: it is the trainable weights as they were, kept aside and swapped in while the
reference speaks. Under LoRA that is a copy of the adapters; with fresh adapters it equals the base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..functional import token_entropy, token_logprobs
from ..interfaces import Context, Needs, Outputs, Policy, Sampling, State, SupervisedTask
from ..randomness import derive_seed
from ..records import Demonstration, Prompt, Rollout, Sample
from .config import CausalLMConfig, Lora
from .decoding import cut_at_stop, sample
from .imitation import Imitation, Tokens, encode_demonstration
from .loading import context_length, load_causal_lm
from .network import PolicyNetwork
from .text import Codec, pad_left, pad_right

REFERENCE_FILE = "reference.safetensors"


class CausalLM(Policy[CausalLMConfig]):
    """A causal language model that acts, gives log-probabilities and values, and remembers its reference."""

    def __init__(self, config: CausalLMConfig, context: Context) -> None:
        super().__init__(config, context)
        lm, tokenizer = load_causal_lm(config, context)
        if config.lora is not None:
            lm = _with_adapters(lm, config.lora, context)
        self.critic: Literal["none", "shared", "separate"] = config.critic
        self.network = PolicyNetwork(lm, config.critic).eval()
        self.tokenizer = tokenizer
        self.codec = Codec(tokenizer, context_length(lm), config.max_prompt_tokens, context.where)
        self._reference: dict[str, Tensor] | None = None
        self._speaks_as_reference = False

    # --- parameters and state ---

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def value_parameters(self) -> list[nn.Parameter]:
        return self.network.value_parameters()

    @property
    def heads(self) -> Sequence[nn.Module]:
        return list(self.network.action_values)

    @property
    def steering(self) -> float:
        return self.network.steering

    @steering.setter
    def steering(self, value: float) -> None:
        if value and not len(self.network.action_values):
            raise ConfigError(
                self.context.where, "steering without action-value heads", fix="call prepare(Needs(heads=...)) first"
            )
        self.network.steering = float(value)

    def prepare(self, needs: Needs) -> None:
        if needs.values or needs.bootstrap:
            self.network.add_value_head()
        self.network.add_action_values(needs.heads)

    def start_critic(self, trunk: nn.Module, head: nn.Linear) -> None:
        network = self.network
        if network.value_trunk is None or network.value_head is None:
            raise ConfigError(
                self.context.where, f"critic: {self.critic} cannot begin as another network", "critic: separate"
            )
        lm: Any = network.lm
        source: Any = trunk
        theirs, vocabulary = (m.get_input_embeddings().weight.shape[0] for m in (source, lm))
        if theirs != vocabulary:
            raise ConfigError(
                f"{self.context.where} critic",
                f"a network over {theirs} tokens",
                f"one over the policy's {vocabulary}, with the same tokenizer",
                "start the reward model from the policy (policy: ID), or leave critic_from out",
            )
        network.value_trunk = copy.deepcopy(trunk).requires_grad_(True).to(self.context.device)
        with torch.no_grad():
            network.value_head.weight.copy_(head.weight[:1])
            network.value_head.bias.copy_(head.bias[:1])

    def _policy_weights(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the language model itself, without those of the critic."""
        return {name: p for name, p in self.network.lm.named_parameters() if p.requires_grad}

    def state_dict(self) -> State:
        """The trainable weights, value head included; frozen ones are where they were loaded from."""
        weights = {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}
        return {
            "weights": weights,
            "has_values": self.network.value_head is not None,
            "heads": len(self.network.action_values),
            "steering": self.network.steering,
        }

    def load_state_dict(self, state: State) -> None:
        if state["has_values"]:
            self.network.add_value_head()
        self.network.add_action_values(state["heads"])
        self.network.steering = state["steering"]
        own = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        _copy_into(own, state["weights"], f"{self.context.where} checkpoint")

    # --- acting ---

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, sample_ids: Sequence[int] | None = None
    ) -> Rollout:
        numbers = list(range(len(prompts))) if sample_ids is None else list(sample_ids)
        encoded = [self.codec.encode_prompt(prompt, sampling.max_new_tokens) for prompt in prompts]
        prompt_ids, prompt_mask = pad_left(encoded, self.codec.pad, self.context.device)
        self.network.eval()
        with self.context.autocast():
            drawn = sample(self.network, self.codec, prompt_ids, prompt_mask, sampling, seed=seed, sample_ids=numbers)
        ids = [row[mask].tolist() for row, mask in zip(drawn.ids, drawn.attention, strict=True)]
        samples = tuple(
            Sample(prompt, cut_at_stop(self.codec.decode(row), sampling.stop), tuple(row))
            for prompt, row in zip(prompts, ids, strict=True)
        )
        device = prompt_ids.device
        return Rollout(
            samples=samples,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=drawn.ids,
            attention=drawn.attention,
            mask=drawn.attention,
            logprobs=drawn.logprobs,
            behaviour_logprobs=drawn.behaviour,
            truncated=drawn.truncated,
            temperature=sampling.heat or 1.0,
            groups=torch.arange(len(prompts), device=device),
            sample_ids=torch.tensor(numbers, device=device),
        )

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> Rollout:
        device, rows = self.context.device, len(samples)
        responses = [self.codec.encode_response(s.prompt, s.response) for s in samples]
        prompts = [self.codec.encode_prompt(s.prompt, len(r)) for s, r in zip(samples, responses, strict=True)]
        prompt_ids, prompt_mask = pad_left(prompts, self.codec.pad, device)
        ids, mask = pad_right(responses, self.codec.pad, device)
        numbers = torch.arange(rows, device=device)
        rollout = Rollout(
            samples=tuple(samples),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=ids,
            attention=mask,
            mask=mask,
            logprobs=torch.zeros(ids.shape, device=device),
            temperature=temperature,
            truncated=torch.zeros(rows, dtype=torch.bool, device=device),
            groups=numbers,
            sample_ids=numbers,
        )
        return rollout.replace(logprobs=self.forward(rollout, Needs()).logprobs)

    def token_ends(self, response_ids: Sequence[int]) -> list[int]:
        return self.codec.token_ends(response_ids)

    # --- evaluating ---

    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        self.network.eval()  # no dropout: a token's probability is a fact, not a sample
        values_wanted = needs.values or needs.bootstrap
        with self.context.autocast():
            logits, values, hidden = self.network.response_states(
                rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.attention, values=values_wanted
            )
        logits = logits[:, :-1]  # (B, T, V); the last position predicts beyond the response
        if rollout.temperature != 1.0:
            # in full precision first: a quotient in bf16 would be rounded before the softmax sees it
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / rollout.temperature
        padding = ~rollout.attention
        top_ids = top_logprobs = None
        if needs.top_k:
            top = _log_softmax(logits).topk(needs.top_k, dim=-1)
            top_ids, top_logprobs = top.indices, top.values
        return Outputs(
            logprobs=token_logprobs(logits, rollout.response_ids).masked_fill(padding, 0.0),
            values=values[:, :-1].masked_fill(padding, 0.0) if values is not None and needs.values else None,
            bootstrap=values.gather(1, rollout.lengths[:, None])[:, 0]
            if values is not None and needs.bootstrap
            else None,
            entropy=token_entropy(logits).masked_fill(padding, 0.0) if needs.entropy else None,
            top_ids=top_ids,
            top_logprobs=top_logprobs,
            distribution=_log_softmax(logits).masked_fill(padding[..., None], 0.0) if needs.distribution else None,
            hidden=hidden[:, :-1].masked_fill(padding[..., None], 0.0) if needs.hidden or needs.heads else None,
        )

    # --- the reference ---

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        if self._reference is None:
            raise ConfigError(
                self.context.where,
                "has no reference yet",
                fix="call set_reference('stage-start') first; the optimize stage does",
            )
        if self._speaks_as_reference:
            yield
            return
        self._swap(self._reference)
        self._speaks_as_reference, steering, self.network.steering = True, self.network.steering, 0.0
        try:
            with torch.no_grad():
                yield
        finally:
            self._speaks_as_reference, self.network.steering = False, steering
            self._swap(self._reference)

    def _swap(self, other: dict[str, Tensor]) -> None:
        for name, parameter in self._policy_weights().items():
            parameter.data, other[name] = other[name], parameter.data
        self.weights_changed()

    def set_reference(self, source: str) -> None:
        now = self._policy_weights()
        if source == "stage-start":
            self._reference = {name: p.detach().clone() for name, p in now.items()}
            return
        if source == "base":
            weights = self._base_weights(now)
        else:
            weights = self._weights_at(Path(source))
        target = {name: torch.empty_like(p) for name, p in now.items()}
        _copy_into(target, weights, f"{self.context.where} reference {source!r}")
        self._reference = target

    def _base_weights(self, now: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """The weights before any training: adapters switched off, or the model as it was loaded."""
        if self.config.lora is not None:
            return {name: torch.zeros_like(p) if "lora_B" in name else p.detach().clone() for name, p in now.items()}
        return dict(load_causal_lm(self.config, self.context)[0].named_parameters())

    def _weights_at(self, path: Path) -> dict[str, Tensor]:
        if (path / REFERENCE_FILE).is_file():
            return load_file(path / REFERENCE_FILE)
        if self.config.lora is None and (path / "config.json").is_file():
            config = CausalLMConfig(model=str(path), trust_remote_code=self.config.trust_remote_code)
            return dict(load_causal_lm(config, self.context)[0].named_parameters())
        raise ConfigError(
            f"{self.context.where} reference",
            f"nothing to load at {path}",
            f"'stage-start', 'base', a folder with {REFERENCE_FILE}, or (full fine-tuning) a model folder",
        )

    def save_reference(self, directory: Path) -> None:
        if self._reference is None:
            raise ConfigError(self.context.where, "has no reference to save", fix="call set_reference() first")
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self._reference.items()}, directory / REFERENCE_FILE)

    # --- learning from demonstrations, leaving the house ---

    def trunk_copy(self) -> nn.Module:
        """A trainable copy of the trunk as it is now, for models that start from the policy, such as a reward's."""
        return self.network.trunk_copy()

    def demonstrations(self, records: Iterable[Demonstration], *, held_out: float) -> SupervisedTask:
        train: list[Tokens] = []
        kept_out: list[Tokens] = []
        longest = None
        if self.codec.context is not None and self.config.max_prompt_tokens is not None:
            longest = max(self.codec.context - self.config.max_prompt_tokens, 1)
        for record in records:
            if record.weight > 0:
                tokens = encode_demonstration(record, self.codec, longest)
                (kept_out if record.prompt.in_share(held_out) else train).append(tokens)
        if not train:
            raise DataError(
                self.context.where,
                "no demonstration is left to train on",
                "at least one",
                "give more demonstrations, or a smaller held_out share",
            )
        return Imitation(self.network, self.codec, self.context, train, kept_out)

    def export(self, directory: Path) -> None:
        lm: Any = self.network.lm
        if self.network.steering:
            self.context.warn(
                f"{self.context.where}: a plain Hugging Face folder holds the language model alone. The action values "
                f"that steer its decoding ({self.network.steering:g} x Q) are not in it: loaded from there it "
                "answers without them. The run's own checkpoint has both"
            )
        if self.config.lora is not None:
            lm.merge_adapter()
            try:
                model = lm.get_base_model()
                weights = {
                    name.replace(".base_layer", ""): t for name, t in model.state_dict().items() if "lora_" not in name
                }
                model.save_pretrained(directory, state_dict=weights)
            finally:
                lm.unmerge_adapter()
        else:
            lm.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def _log_softmax(logits: Tensor) -> Tensor:
    """log-probabilities (..., V), in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _with_adapters(lm: Any, config: Lora, context: Context) -> Any:
    """Wrap `lm` with peft adapters.

    Raises:
        ConfigError: a target module does not exist.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(context.stream("adapters")))
        try:
            return get_peft_model(lm, lora)
        except ValueError as error:
            linear = sorted({name.rpartition(".")[2] for name, m in lm.named_modules() if isinstance(m, nn.Linear)})
            raise ConfigError(
                f"{context.where} lora.target_modules",
                f"{config.target_modules!r}: {error}",
                f"names among {', '.join(linear)}",
            ) from error


def _copy_into(target: dict[str, Any], source: dict[str, Tensor], where: str) -> None:
    """Copy tensors by name.

    Raises:
        ConfigError: a name or a shape does not fit.
    """
    missing, extra = sorted(target.keys() - source.keys()), sorted(source.keys() - target.keys())
    wrong = [n for n in target.keys() & source.keys() if target[n].shape != source[n].shape]
    if missing or wrong:
        got = f"{len(missing)} weights are missing ({missing[:2]}), {len(wrong)} have another shape ({wrong[:2]})"
        raise ConfigError(
            where,
            f"{got}, {len(extra)} are unknown",
            "weights of the same model",
            "use the configuration that they were saved with",
        )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
