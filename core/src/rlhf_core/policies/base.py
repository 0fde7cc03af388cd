"""One base, many roles: a frozen model that is in memory once and speaks with the adapter of whoever asks.

Adapters of several roles (policy, critic, reward models) sit side by side in the same layers, and one of them is active
at a time. Switching between a forward pass and its backward pass is where gradients get lost: peft's switch takes
`requires_grad` from the others, and a checkpointed layer that is computed again would use the adapter active by then.
Here the switch leaves `requires_grad` alone, and a checkpointed layer remembers who spoke. So graphs of several roles
may live side by side; tests compare the gradients of every role with those of separate models.
"""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..interfaces import Context
from ..training.sharding import as_shared_out
from .config import Lora
from .loading import Origin
from .pickles import refuse_pickles
from .quantization import dequantized, is_4bit, was_turned

NOBODY = "nobody"  # no adapter has this name: the base as it is


class Base:
    """A frozen transformers model with a tokenizer, whose layers carry the adapters of its roles.

    Attributes:
        model: the transformers model. tokenizer: its own. lm: `model`, inside peft's wrapper once there is an adapter.
        role: whose adapter is active.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.lm: Any = model
        self.role = NOBODY
        self._owners: dict[int, str] = {}
        self._layers: list[Any] = []
        self._checkpointed = False

    def add(self, wanted: str, lora: Lora, context: Context, *, task: str, frozen_layers: int = 0) -> str:
        """Make an adapter, all of whose B are zero, or what `lora.start` holds, and return its name.

        Args:
            wanted: its name; another role that has it already gets a number behind it.
            task: peft's task type, such as CAUSAL_LM. frozen_layers: so many of the lowest layers get none.

        Raises:
            ConfigError: a target module does not exist, or the adapters to start from do not fit.
        """
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        taken, before = set(self._owners.values()), self.role
        name = next(n for n in (wanted, *(f"{wanted}_{i}" for i in range(2, 999))) if n not in taken)
        options = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=_targets(self.model, lora, frozen_layers, context),
            task_type=task,
        )
        flags = self._flags()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.stream("adapters", wanted))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
                if self.lm is self.model:
                    self.lm = get_peft_model(self.model, options, adapter_name=name)
                else:
                    self.lm.add_adapter(name, options)
        self._layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        for parameter, flag in flags:  # peft freezes those that were there
            parameter.requires_grad_(flag)
        for path, parameter in self.model.named_parameters():
            if re.search(rf"\.lora_\w+\.{name}(\.|$)", path):
                self._owners[id(parameter)] = name
                parameter.requires_grad_(True)
        self.role = name  # peft has switched to the new one, or not: either way
        self._switch(before if taken else name)  # whoever came first speaks when nobody is asked
        if lora.start is not None:
            _start_from(self, name, lora, context)
        return name

    def checkpoint_layers(self) -> None:
        """Let the layers keep only their inputs for the backward pass, whoever speaks; harmless when called again."""
        if not self._checkpointed:
            checkpoint_layers(self.model, self)
            self._checkpointed = True

    def save(self, role: str, directory: Path) -> None:
        """Write a role's adapter as a folder in peft's format."""
        self.lm.save_pretrained(directory, selected_adapters=[role])
        if (directory / role).is_dir():  # where peft puts those that are not called "default"
            for path in (directory / role).iterdir():
                path.replace(directory / path.name)
            (directory / role).rmdir()

    def owner(self, parameter: nn.Parameter) -> str | None:
        """The role whose adapter `parameter` is part of; None: of the base itself."""
        return self._owners.get(id(parameter))

    def weights(self, role: str) -> dict[str, nn.Parameter]:
        """The parameters of a role's adapter, by names that hold nothing of the role."""
        return {
            re.sub(rf"(\.lora_\w+)\.{role}(?=\.|$)", r"\1", path): parameter
            for path, parameter in self.model.named_parameters()
            if self.owner(parameter) == role
        }

    @contextmanager
    def speaking(self, role: str) -> Iterator[None]:
        """Inside, `role`'s adapter is active, or none with `NOBODY`. Nests."""
        before = self.role
        self._switch(role)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, role: str) -> None:
        if role == self.role:
            return
        flags = self._flags()
        for layer in self._layers:
            layer.set_adapter(role)
        for parameter, flag in flags:  # a gradient may still be on its way to the others
            parameter.requires_grad_(flag)
        self.role = role

    def _flags(self) -> list[tuple[nn.Parameter, bool]]:
        return [(p, p.requires_grad) for layer in self._layers for p in layer.parameters() if id(p) in self._owners]

    def merged(self, role: str) -> dict[str, Tensor]:
        """The weights of the plain model with `role`'s adapter merged into them, 4-bit ones made whole."""
        tensors = {
            path.replace(".base_layer", ""): t
            for path, t in self.model.state_dict().items()
            if "lora_" not in path and ".weight." not in path  # neither adapters nor the scales of 4-bit blocks
        }
        turned = []
        for path, module in self.model.named_modules():
            if is_4bit(module):
                key = f"{path.replace('.base_layer', '')}.weight"
                tensors[key] = dequantized(module)
                turned.extend([key] if was_turned(module) else [])
        for path, layer in self.model.named_modules():
            if layer in self._layers and (role in layer.lora_A or role in layer.lora_embedding_A):
                whole = tensors[f"{path}.weight"]
                tensors[f"{path}.weight"] = whole + layer.get_delta_weight(role).to(whole)
        for key in turned:
            tensors[key] = tensors[key].T.contiguous()
        return tensors

    def plain(self, device: str) -> Any:
        """A transformers model of the same shape with neither adapters nor 4-bit weights, its weights still to be set;
        on "meta" they take no memory."""
        config = copy.deepcopy(self.model.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.random.fork_rng(devices=[]), torch.device(device):
            plain = type(self.model)(config).to(self.model.get_input_embeddings().weight.dtype)
        plain.generation_config = copy.deepcopy(getattr(self.model, "generation_config", None))
        return plain.eval()

    def whole(self, role: str) -> Any:
        """A model of its own with what `role` says: its adapter merged, 4-bit weights made whole."""
        weights = self.merged(role)
        model = self.plain("cpu").to(next(t.device for t in weights.values()))
        model.load_state_dict(weights)
        return model


def shared_base(config: Origin, context: Context, task: str, load: Callable[[], tuple[Any, Any]]) -> Base:
    """The run's base for what `config` says of a model, loaded by whoever asks first.

    Args:
        config: a fresh model is that of the component which makes it. task: peft's task type.
        load: gives the model and its tokenizer.
    """
    origin = (config.model, config.fresh, config.revision, config.trust_remote_code, config.quantization)
    own = context.where if config.fresh is not None else ""
    base = context.base(f"{task} {origin} {context.dtype} {context.device} {own}", lambda: Base(*load()))
    assert isinstance(base, Base)
    return base


def headless(model: Any) -> Any:
    """`model` without its heads: the same parameters, and hidden states for an output."""
    if model.base_model is not model:
        return model.base_model
    if model.get_output_embeddings() is None:
        return model
    from transformers import AutoModel

    # T5 has encoder and decoder beside its head, not in a model below it
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        found = AutoModel.from_config(model.config)
    for name, _ in list(found.named_children()):
        setattr(found, name, getattr(model, name))
    return found.eval()


class Speaker(nn.Module):
    """A network over a model that others may share: of the adapters in it only its own count as its parameters."""

    def __init__(self, base: Base | None) -> None:
        super().__init__()
        self.base = base

    @property
    @abstractmethod
    def roles(self) -> tuple[str, ...]:
        """The names of its adapters in `base`."""

    def speaking(self, role: str) -> AbstractContextManager[None]:
        """Inside, the base speaks for `role`; without a base there is only one voice."""
        return nullcontext() if self.base is None else self.base.speaking(role)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            owner = None if self.base is None else self.base.owner(parameter)
            if owner is None or owner in self.roles:
                yield name, parameter


def checkpoint_layers(model: nn.Module, base: Base | None) -> None:
    """Let the layers of `model` keep only their inputs for the backward pass and compute the rest again.

    transformers' own switch works in training mode only; policies are evaluated without dropout.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(_checkpointed, layer.forward, base)


def _checkpointed(forward: Any, base: Base | None, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    voice = nullcontext if base is None else partial(base.speaking, base.role)  # of who speaks now
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), voice()), **kwargs)


def freeze_layers(model: Any, count: int, context: Context) -> None:
    """Take the embeddings and the `count` lowest layers, of an encoder-decoder those of both, out of training.

    Raises:
        ConfigError: there are fewer layers.
    """
    if not count:
        return
    upper = {id(p) for layer in layers_above(model, count, context) for p in layer.parameters()}
    below = {id(p) for layer in layers_above(model, 0, context) for p in layer.parameters()} - upper
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()} - upper
    for parameter in model.parameters():
        if id(parameter) in below | embeddings:
            parameter.requires_grad_(False)


def layers_above(model: Any, frozen: int, context: Context) -> Sequence[nn.Module]:
    """The layers of `model` above the `frozen` lowest ones, of an encoder-decoder those of both."""
    if model.config.is_encoder_decoder:
        parts = (model.get_encoder(), model.get_decoder())
        stacks = [next(m for m in part.modules() if isinstance(m, nn.ModuleList)) for part in parts]
        size = min(map(len, stacks))
    else:
        size = model.config.get_text_config().num_hidden_layers
        stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == size][:1]
    if not stacks or frozen > size:
        raise ConfigError(
            f"{context.where} frozen_layers",
            f"{frozen} of the {size} layers of {model.config.model_type!r}",
            f"at most {size if stacks else 0}",
            "lower frozen_layers",
        )
    return [layer for stack in stacks for layer in stack[frozen:]]


def _targets(model: Any, lora: Lora, frozen: int, context: Context) -> str | list[str]:
    """What peft is to put adapters on.

    Raises:
        ConfigError: a name is that of no linear layer.
    """
    from transformers.pytorch_utils import Conv1D

    wanted = lora.target_modules
    if wanted == "all-linear" and not frozen:
        return wanted
    kinds = (nn.Linear, nn.Embedding, Conv1D)
    output = model.get_output_embeddings()
    names = {
        name: module
        for name, module in ((n.removesuffix(".base_layer"), m) for n, m in model.named_modules())
        if isinstance(module, kinds)
    }
    if isinstance(wanted, list):
        found = {w: [n for n in names if n == w or n.endswith(f".{w}")] for w in wanted}
        for name, places in found.items():
            if not places:
                known = sorted({n.rpartition(".")[2] for n in names})
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                raise ConfigError(
                    f"{context.where} lora.target_modules",
                    f"no layer is called {name!r}",
                    f"names among {', '.join(known)}",
                    f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "choose among them",
                )
        if not frozen:
            return wanted
        chosen = {place for places in found.values() for place in places}
    else:
        chosen = {n for n, m in names.items() if not isinstance(m, nn.Embedding) and m is not output}
    above = {id(m) for layer in layers_above(model, frozen, context) for m in layer.modules()}
    return sorted(n for n in chosen if id(names[n]) in above)


def _start_from(base: Base, role: str, lora: Lora, context: Context) -> None:
    """Fill a role's adapter with one that was saved in peft's format.

    Raises:
        ConfigError: there is none, or it does not fit the base or the options.
    """
    refuse_pickles(lora.start, f"{context.where} lora.start")
    try:
        found = load_file(_adapter_file(str(lora.start)))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{context.where} lora.start",
            f"cannot load adapters from {lora.start!r}: {reason}",
            "a folder or hub id with adapter_config.json and adapter_model.safetensors",
            "check the path, relative to the registry file, or the network",
        ) from error
    source = {name.removeprefix("base_model.model."): t for name, t in found.items()}
    where, target = f"{context.where} lora.start {lora.start!r}", dict(base.weights(role))
    expected = "adapters made for this base, with the same r and target_modules"
    fix = "take the base they were trained on, and the r and target_modules in their adapter_config.json"
    unknown = sorted(source.keys() - target.keys())
    if unknown:
        raise ConfigError(where, f"{len(unknown)} adapters of layers that get none here ({unknown[:2]})", expected, fix)
    copy_into(target, source, where, expected=expected, fix=fix)


def _adapter_file(start: str) -> Path:
    """The file of a folder or hub id; peft's own way to it would fall back on a pickle."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    if Path(start).is_dir():
        return Path(start, SAFETENSORS_WEIGHTS_NAME)
    from huggingface_hub import hf_hub_download

    return Path(str(hf_hub_download(start, SAFETENSORS_WEIGHTS_NAME)))


def copy_into(
    target: dict[str, Any],
    source: dict[str, Tensor],
    where: str,
    *,
    expected: str = "weights of the same model",
    fix: str = "use the configuration that they were saved with",
) -> None:
    """Copy tensors by name.

    Raises:
        ConfigError: a name or a shape does not fit.
    """
    missing, extra = sorted(target.keys() - source.keys()), sorted(source.keys() - target.keys())
    wrong = [n for n in sorted(target.keys() & source.keys()) if target[n].shape != source[n].shape]
    if missing or wrong:
        example = ""
        if wrong:
            example = f"; {wrong[0]} is {tuple(source[wrong[0]].shape)}, not {tuple(target[wrong[0]].shape)}"
        got = f"{len(missing)} weights are missing ({missing[:2]}), {len(wrong)} have another shape ({wrong[:2]})"
        raise ConfigError(where, f"{got}, {len(extra)} are unknown{example}", expected, fix)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(as_shared_out(source[name], tensor))
