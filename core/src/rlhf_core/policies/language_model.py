"""What the built-in policies have in common: a language model of transformers, trained whole, by LoRA, or over 4 bits.

The reference is not a second model: it is the trainable weights as they were, kept aside and swapped in while the
reference speaks. Under LoRA that is a copy of the adapters; with fresh ones it equals the base, and none is active.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..interfaces import Context, Generator, Needs, Outputs, Policy, Sampling, State, SupervisedTask
from ..records import Demonstration, Prompt, Rollout, Sample
from ..training import by_tokens
from ..training.sharding import is_shared_out, whole
from .base import NOBODY, Base, checkpoint_layers, copy_into, freeze_layers, layers_above, shared_base
from .config import LMConfig, RefillConfig
from .decoding import Refill, cut_at_stop
from .imitation import EVALUATION_TOKENS, Imitation, Tokens, encode_demonstration
from .loading import check_compiler
from .network import PolicyNetwork
from .quantization import compute_dtype, whole_size
from .text import Codec, pad_left, pad_right

C = TypeVar("C", bound=LMConfig)
REFERENCE_FILE = "reference.safetensors"


class LanguageModel(Policy[C]):
    """A language model that acts, gives log-probabilities and values, and remembers its reference.

    A subclass says how the model is loaded, what it reads, and how text becomes ids.
    """

    network_class: ClassVar[type[PolicyNetwork]]
    task_type: ClassVar[str]
    """What peft calls it."""

    def __init__(self, config: C, context: Context) -> None:
        super().__init__(config, context)
        self.critic: Literal["none", "shared", "adapter", "separate"] = config.critic
        self.base: Base | None = None
        options: dict[str, Any] = {"checkpointing": config.gradient_checkpointing, "compiled": config.compile}
        if config.compile:
            check_compiler(context)
        if config.lora is None:
            model, self.tokenizer = self.load(config)
            freeze_layers(model, config.frozen_layers, context)
            if config.gradient_checkpointing:
                checkpoint_layers(model, None)
        else:
            self.base = shared_base(config, context, self.task_type, lambda: self.load(config))
            if config.gradient_checkpointing:
                self.base.checkpoint_layers()
            model, self.tokenizer = self.base.model, copy.deepcopy(self.base.tokenizer)
            role = self._adapter("default")  # the name that other libraries look for
            options.update(base=self.base, role=role)
        self.network = self.network_class(model, config.critic, **options).eval()
        if config.sharded and context.accelerator is not None and context.accelerator.num_processes > 1:
            self._share_out(model)
        self.codec = self.make_codec(model)
        self._reference: dict[str, Tensor] | None = None
        self._unsaved: dict[str, Tensor] = {}  # the reference as a whole, where weights are shared out
        self._reference_is_base = False  # no adapter speaks for it
        self._speaks_as_reference = False

    @abstractmethod
    def load(self, config: C) -> tuple[Any, Any]:
        """The transformers model and its tokenizer, on the context's device."""

    @abstractmethod
    def make_codec(self, model: Any) -> Codec:
        """What stands between text and ids."""

    def as_read(self, prompt: Prompt) -> Prompt:
        """`prompt` as the model reads it; rewards, metrics and reports see it as it was given.

        To be overridden, for example to put an instruction or examples in front.
        """
        return prompt

    def _share_out(self, model: Any) -> None:
        """Raises ConfigError for a model or an option that cannot be had with it."""
        config, accelerator = self.config, self.context.accelerator
        assert accelerator is not None
        lost = "an encoder-decoder" if model.config.is_encoder_decoder else "`compile`" if config.compile else ""
        if lost:
            raise ConfigError(
                f"{self.context.where} sharded",
                f"{lost} over {accelerator.num_processes} processes",
                "a decoder-only model, without `compile`",
                "leave `sharded` out: every process then has all weights",
            )
        self.network.share_out(layers_above(model, 0, self.context), accelerator)

    def gather(self) -> None:
        if self.network.shards is not None:
            self.network.shards.gather()

    def _split(self) -> None:
        """Where weights are shared out: back to this process's part, which is what is learnt and kept."""
        if self.network.shards is not None:
            self.network.shards.split()

    def _adapter(self, wanted: str) -> str:
        assert self.base is not None and self.config.lora is not None
        frozen = self.config.frozen_layers
        return self.base.add(wanted, self.config.lora, self.context, task=self.task_type, frozen_layers=frozen)

    # --- parameters and state ---

    @property
    def module(self) -> nn.Module:
        self._split()
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
            self._make_critic()
        self.network.add_action_values(needs.heads)

    def _make_critic(self) -> None:
        if self.critic == "adapter" and self.network.value_head is None:
            self.network.critic_role = self._adapter("critic")
        self.network.add_value_head()

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

    def state_dict(self) -> State:
        """The trainable weights, value head included; frozen ones are where they were loaded from."""
        self._split()
        return {
            "weights": {name: whole(p.detach()) for name, p in self.network.trainable().items()},
            "has_values": self.network.value_head is not None,
            "heads": len(self.network.action_values),
            "steering": self.network.steering,
        }

    def load_state_dict(self, state: State) -> None:
        if state["has_values"]:
            self._make_critic()
        self.network.add_action_values(state["heads"])
        self.network.steering = state["steering"]
        self._split()
        copy_into(self.network.trainable(), state["weights"], f"{self.context.where} checkpoint")

    @property
    def parameter_count(self) -> int:
        return sum(whole_size(p) for p in self.module.parameters())

    # --- acting ---

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, sample_ids: Sequence[int] | None = None
    ) -> Rollout:
        numbers = list(range(len(prompts))) if sample_ids is None else list(sample_ids)
        self._check_stop(sampling.stop)
        encoded = [self.codec.encode_prompt(self.as_read(prompt), sampling.max_new_tokens) for prompt in prompts]
        prompt_ids, prompt_mask = pad_left(encoded, self.codec.pad, self.context.device)
        self.network.eval()
        self.gather()
        with self.context.autocast():
            drawn = self.engine.draw(self, encoded, sampling, seed=seed, sample_ids=numbers)
        ids = [row[mask].tolist() for row, mask in zip(drawn.ids, drawn.attention, strict=True)]
        samples = tuple(
            Sample(prompt, cut_at_stop(self.codec.decode(row), sampling.stop), tuple(row))
            for prompt, row in zip(prompts, ids, strict=True)
        )
        device = prompt_ids.device
        rollout = Rollout(
            samples=samples,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=drawn.ids,
            attention=drawn.attention,
            mask=drawn.attention,
            logprobs=torch.zeros(drawn.ids.shape, device=device) if drawn.logprobs is None else drawn.logprobs,
            behaviour_logprobs=drawn.behaviour,
            values=drawn.values,
            truncated=drawn.truncated,
            temperature=sampling.heat or 1.0,
            groups=torch.arange(len(prompts), device=device),
            sample_ids=torch.tensor(numbers, device=device),
        )
        return rollout if drawn.logprobs is not None else rollout.replace(logprobs=self._evaluated(rollout))

    def _evaluated(self, rollout: Rollout) -> Tensor:
        """log-probabilities (B, T) of what an engine drew that does not know them, a part at a time."""
        logprobs = torch.zeros_like(rollout.logprobs)
        sizes = rollout.prompt_mask.sum(1) + rollout.lengths
        with torch.no_grad():
            for rows in by_tokens(sizes.tolist(), EVALUATION_TOKENS):
                part = rollout.select(rows)
                logprobs[rows, : part.mask.shape[1]] = self.forward(part, Needs()).logprobs
        return logprobs

    @cached_property
    def engine(self) -> Generator[Any]:
        """What draws responses."""
        if self.config.engine is None:
            return Refill(RefillConfig(), self.context.named("engine", "refill"))
        found: Generator[Any] = self.context.component("engine", self.config.engine)
        return found

    def _check_stop(self, stop: Sequence[str]) -> None:
        """Raises ConfigError for a stop string that the tokenizer cannot write."""
        for text in stop:
            written = self.codec.written(text)
            if text not in written:
                raise ConfigError(
                    f"{self.context.where} sampling.stop",
                    f"{text!r}, which no tokens make: the nearest that this tokenizer writes is {written[1:-1]!r}",
                    "text that it can write",
                    "take another stop string, or one without the characters that got lost",
                )

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> Rollout:
        device, rows = self.context.device, len(samples)
        read = [self.as_read(s.prompt) for s in samples]
        responses = [  # what was drawn stays as it was drawn; its text might give other ids
            self.codec.encode_response(prompt, s.response) if s.response_ids is None else list(s.response_ids)
            for prompt, s in zip(read, samples, strict=True)
        ]
        prompts = [self.codec.encode_prompt(prompt, len(ids)) for prompt, ids in zip(read, responses, strict=True)]
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
        texts = rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.attention
        valued = needs.values or needs.bootstrap
        with self.context.autocast():
            if valued and not _reads_the_policy(needs):
                values = self.network.response_values(*texts)
                return _outputs(rollout, needs, values, logprobs=torch.zeros_like(rollout.logprobs))
            found = self.network.response_states(*texts, values=valued)
            scored = self.network.scores(
                found,
                rollout.response_ids,
                rollout.attention,
                temperature=rollout.temperature,
                entropy=needs.entropy,
                top_k=needs.top_k,
            )
            distribution = self.network.distribution(found, rollout.temperature) if needs.distribution else None
        padding = ~rollout.attention[..., None]
        return _outputs(
            rollout,
            needs,
            found.values,
            **scored._asdict(),
            distribution=None if distribution is None else distribution.masked_fill(padding, 0.0),
            hidden=found.states[:, :-1].masked_fill(padding, 0.0) if needs.hidden or needs.heads else None,
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
        network, reference = self.network, self._reference
        role, steering = network.role, network.steering
        self._swap(reference)
        try:
            self._speaks_as_reference, network.steering = True, 0.0
            network.role = NOBODY if self._reference_is_base else role
            with torch.no_grad():
                yield
        finally:
            self._speaks_as_reference, network.role, network.steering = False, role, steering
            self._swap(reference)

    def _swap(self, other: dict[str, Tensor]) -> None:
        self._split()
        for name, parameter in self.network.policy_weights().items():
            if is_shared_out(parameter):  # whose memory FSDP2 knows: what is in it changes places
                kept = other[name].clone()
                other[name].copy_(parameter.data)
                parameter.data.copy_(kept)
            else:
                parameter.data, other[name] = other[name], parameter.data
        self.weights_changed()

    def set_reference(self, source: str) -> None:
        self._split()
        now = self.network.policy_weights()
        if source == "stage-start":
            reference = {name: p.detach().clone() for name, p in now.items()}
        else:
            weights = self._base_weights(now) if source == "base" else self._weights_at(Path(source))
            reference = {name: torch.empty_like(p) for name, p in now.items()}
            copy_into(reference, weights, f"{self.context.where} reference {source!r}")
        self._reference = reference
        if self.network.shards is not None:  # only one process saves, and none gets all of it alone
            self._unsaved = {name: whole(t).cpu() for name, t in reference.items()}
        adapters = [t for name, t in reference.items() if "lora_B" in name]
        self._reference_is_base = self.base is not None and not any(bool(t.any()) for t in adapters)

    def _base_weights(self, now: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """The weights before any training: adapters switched off, or the model as it was loaded."""
        if self.config.lora is not None:
            return {name: torch.zeros_like(p) if "lora_B" in name else p.detach().clone() for name, p in now.items()}
        return dict(self.load(self.config)[0].named_parameters())

    def _weights_at(self, path: Path) -> dict[str, Tensor]:
        if (path / REFERENCE_FILE).is_file():
            return load_file(path / REFERENCE_FILE)
        if self.config.lora is None and (path / "config.json").is_file():
            config = self.config.model_copy(update={"model": str(path), "fresh": None, "revision": None})
            return dict(self.load(config)[0].named_parameters())
        raise ConfigError(
            f"{self.context.where} reference",
            f"nothing to load at {path}",
            f"'stage-start', 'base', a folder with {REFERENCE_FILE}, or (full fine-tuning) a model folder",
        )

    def save_reference(self, directory: Path) -> None:
        if self._reference is None:
            raise ConfigError(self.context.where, "has no reference to save", fix="call set_reference() first")
        directory.mkdir(parents=True, exist_ok=True)
        tensors = self._unsaved or self._reference
        save_file({name: t.contiguous() for name, t in tensors.items()}, directory / REFERENCE_FILE)
        self._unsaved = {}

    # --- learning from demonstrations, leaving the house ---

    def trunk_copy(self) -> nn.Module:
        """A trainable copy of the trunk as it is now, for models that start from the policy, such as a reward's."""
        return self.network.trunk_copy()

    def demonstrations(self, records: Iterable[Demonstration], *, held_out: float) -> SupervisedTask:
        train: list[Tokens] = []
        kept_out: list[Tokens] = []
        longest = self.codec.longest_response
        for record in records:
            if record.weight > 0:
                read = record.model_copy(update={"prompt": self.as_read(record.prompt)})
                tokens = encode_demonstration(read, self.codec, longest)
                (kept_out if record.prompt.in_share(held_out) else train).append(tokens)
        if not train:
            raise DataError(
                self.context.where,
                "no demonstration is left to train on",
                "at least one",
                "give more demonstrations, or a smaller held_out share",
            )
        return Imitation(self.network, self.codec, self.context, train, kept_out)

    def export(self, directory: Path, *, adapters: bool = False) -> None:
        network = self.network
        if network.steering:
            self.context.warn(
                f"{self.context.where}: a plain Hugging Face folder holds the language model alone. The action values "
                f"that steer its decoding ({network.steering:g} x Q) are not in it: loaded from there it "
                "answers without them. The run's own checkpoint has both"
            )
        if adapters:
            self._export_adapters(directory)
        elif self.base is not None:
            self.base.plain("meta").save_pretrained(directory, state_dict=self.base.merged(network.role))
        else:
            if (shards := network.shards) is not None:
                shards.gather()
            network.model.save_pretrained(directory, state_dict=None if shards is None else network.weights())
        self.tokenizer.save_pretrained(directory)

    def _export_adapters(self, directory: Path) -> None:
        """Raises ConfigError without adapters, or over a base that nobody could load."""
        if self.base is None or self.config.model is None:
            raise ConfigError(
                f"{self.context.where} export",
                "adapters of full fine-tuning"
                if self.base is None
                else "adapters of a fresh base, which no file holds",
                "a policy with `model` and `lora`",
                "export `weights: merged`",
            )
        self.base.save(self.network.role, directory)

    @property
    def exported_from(self) -> str | None:
        quantization = self.config.quantization
        if quantization is None or self.base is None:
            return None
        dtype = str(compute_dtype(quantization, self.context)).removeprefix("torch.")
        return f"4-bit {quantization.type} weights made whole in {dtype}"


def _reads_the_policy(needs: Needs) -> bool:
    """Whether anything is wanted beside values."""
    return bool(needs.logprobs or needs.entropy or needs.top_k or needs.distribution or needs.hidden or needs.heads)


def _outputs(rollout: Rollout, needs: Needs, values: Tensor | None, **others: Any) -> Outputs:
    """Outputs with what `needs` asks for of the values (B, T + 1)."""
    return Outputs(
        values=values[:, :-1].masked_fill(~rollout.attention, 0.0) if values is not None and needs.values else None,
        bootstrap=values.gather(1, rollout.lengths[:, None])[:, 0] if values is not None and needs.bootstrap else None,
        **others,
    )
