"""Where models and tokenizers come from: a folder, the hub, or fresh."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from ..errors import ConfigError
from ..interfaces import Context
from ..records import Comparison, Demonstration, Edit, Feedback
from .attention import use_plain_attention
from .pickles import refuse_pickles

if TYPE_CHECKING:
    from .config import FreshModel, FreshTokenizer, LMConfig, Quantization

# Tokenizers parallelise with threads that a later fork must not inherit; we never need their speed.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("transformers").setLevel(logging.ERROR)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it tells of kernels it could download
transformers_logging.disable_progress_bar()  # it would draw over our own

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"


def feedback_texts(records: Iterable[Feedback]) -> Iterator[str]:
    """Every prompt with each of its responses, as whole texts."""
    for record in records:
        if isinstance(record, Comparison):
            responses: tuple[str, ...] = record.responses
        elif isinstance(record, Edit):
            responses = (record.original, record.edited)
        elif isinstance(record, Demonstration):
            responses = (record.response,)
        else:
            responses = (record.response or "",)
        prompt = record.prompt.render()
        yield from (prompt + record.prompt.render_response(response) for response in responses)


def fresh_tokenizer(config: FreshTokenizer, context: Context) -> Any:
    """Train a byte-level BPE tokenizer on the texts of the named feedback sources; the same texts give the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for id in config.text for text in feedback_texts(context.component("feedback", id)))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING, clean_up_tokenization_spaces=False
    )


def fresh_model_config(config: FreshModel, tokenizer: Any, context: Context) -> Any:
    """A transformers config of the wanted sizes for `tokenizer`.

    Raises:
        ConfigError: the architecture is unknown, or a size does not fit it.
    """
    from transformers import AutoConfig

    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    with fitting(config, context):
        usual = AutoConfig.for_model(config.architecture)
        if usual.is_encoder_decoder:  # BART's decoder starts from an end of text, T5's from padding
            ends = getattr(usual, "decoder_start_token_id", None) == usual.eos_token_id
            ids["decoder_start_token_id"] = tokenizer.eos_token_id if ends else tokenizer.pad_token_id
            if hasattr(usual, "forced_eos_token_id"):
                ids["forced_eos_token_id"] = None  # by default an id of another vocabulary
        return AutoConfig.for_model(config.architecture, **ids, **config.sizes)


@contextmanager
def fitting(config: FreshModel, context: Context) -> Iterator[None]:
    """Tell what goes wrong in making a fresh model as a fault of its sizes."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{context.where} fresh",
            f"{config.architecture!r} with {config.sizes}: {error}",
            "a transformers model type and sizes that fit together",
        ) from error


def fresh_pair(auto_class: Any, config: FreshModel, context: Context) -> tuple[Any, Any]:
    """A model with seeded random weights, of a transformers auto class, and its tokenizer."""
    import torch

    tokenizer = fresh_tokenizer(config.tokenizer, context)
    model_config = fresh_model_config(config, tokenizer, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.stream("init"))
        with fitting(config, context):
            model = auto_class.from_config(model_config)
    tokenizer.model_max_length = context_length(model) or int(1e30)
    return model.to(context.torch_dtype), tokenizer


def load_lm(auto_class: Any, config: LMConfig, context: Context) -> tuple[Any, Any]:
    """The language model and tokenizer that `config` asks for, on the context's device, in 4 bits if it says so.

    Raises:
        ConfigError: there is no such model, no tokenizer with it, one that does not fit, or 4 bits cannot be had here.
    """
    model, tokenizer = load_pair(auto_class, config, context)
    complete_tokenizer(tokenizer, context)
    size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise ConfigError(
            context.where,
            f"the tokenizer has {len(tokenizer)} entries, the embedding {size}",
            "a tokenizer that fits the model",
            "use the model's own tokenizer",
        )
    return model.to(context.device), tokenizer


def load_causal_lm(config: LMConfig, context: Context) -> tuple[Any, Any]:
    """`load_lm` for decoder-only models.

    Raises:
        ConfigError: as `load_lm`, and where the model is an encoder or an encoder-decoder.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    found = shape_of(config, context)
    if found.is_encoder_decoder:
        raise ConfigError(
            context.where,
            f"{found.model_type!r} is an encoder-decoder",
            "a decoder-only model, such as llama, qwen3 or gpt2",
            "`use: seq2seq-lm` for this model",
        )
    model, tokenizer = load_lm(AutoModelForCausalLM, config, context)
    kind = model.config.model_type
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model.config, "is_decoder", False):
        raise ConfigError(
            context.where,
            f"{kind!r} is an encoder: its tokens see what comes after them",
            "a decoder-only model, such as llama, qwen3 or gpt2",
            "take another model; for a reward model encoders are fine",
        )
    return model, tokenizer


def load_seq2seq_lm(config: LMConfig, context: Context) -> tuple[Any, Any]:
    """`load_lm` for encoder-decoder models, whose config says what the decoder starts from.

    Raises:
        ConfigError: as `load_lm`, and where the model is no encoder-decoder or does not say what it starts from.
    """
    from transformers import AutoModelForSeq2SeqLM

    found = shape_of(config, context)
    if not found.is_encoder_decoder:
        raise ConfigError(
            context.where,
            f"{found.model_type!r} is no encoder-decoder",
            "a model such as t5 or bart",
            "`use: causal-lm` for decoder-only models",
        )
    model, tokenizer = load_lm(AutoModelForSeq2SeqLM, config, context)
    start = getattr(model.config, "decoder_start_token_id", None)
    start = model.generation_config.decoder_start_token_id if start is None else start
    if not isinstance(start, int):
        raise ConfigError(
            context.where,
            f"decoder_start_token_id is {start!r}",
            "the token that the decoder starts from",
            "set decoder_start_token_id in the model's config.json",
        )
    model.config.decoder_start_token_id = start
    return model, tokenizer


def shape_of(config: LMConfig, context: Context) -> Any:
    """The transformers config of the model that `config` asks for; of a fresh one as it usually is.

    Raises:
        ConfigError: there is no such model.
    """
    from transformers import AutoConfig

    if config.fresh is not None:
        with fitting(config.fresh, context):
            return AutoConfig.for_model(config.fresh.architecture)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    return load_pretrained(AutoConfig, config.model, context, **options)


class Origin(Protocol):
    """The part of a config that says where a model is loaded from."""

    @property
    def model(self) -> str | None: ...

    @property
    def fresh(self) -> FreshModel | None: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def trust_remote_code(self) -> bool: ...

    @property
    def quantization(self) -> Quantization | None: ...


def load_pair(auto_class: Any, config: Origin, context: Context) -> tuple[Any, Any]:
    """The model that `config` names or describes, of a transformers auto class, in 4 bits if it says so; its tokenizer.

    Raises:
        ConfigError: as `load_pretrained`; sizes do not fit together; 4 bits cannot be had here.
    """
    model, tokenizer = _load_pair(auto_class, config, context)
    use_plain_attention(model)
    return model, tokenizer


def _load_pair(auto_class: Any, config: Origin, context: Context) -> tuple[Any, Any]:
    if config.fresh is not None:
        model, tokenizer = fresh_pair(auto_class, config.fresh, context)
        if config.quantization is not None:
            from .quantization import quantize

            model = quantize(model, config.quantization, context)
        return model, tokenizer
    from transformers import AutoTokenizer

    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    tokenizer = load_pretrained(AutoTokenizer, config.model, context, **options)
    if config.quantization is None:
        return load_pretrained(auto_class, config.model, context, dtype=context.torch_dtype, **options), tokenizer
    from .quantization import loading_options, settled

    reading = loading_options(config.quantization, context)
    model = load_pretrained(auto_class, config.model, context, **reading, **options)
    return settled(model, reading["dtype"], context), tokenizer


def complete_tokenizer(tokenizer: Any, context: Context) -> None:
    """Give a tokenizer the end of text and the padding it may lack.

    Raises:
        ConfigError: it has nothing that ends a text.
    """
    if tokenizer.eos_token_id is None:  # encoders close a text with their separator
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            context.where,
            "a tokenizer with neither an end-of-text token nor a separator",
            "one of them",
            "set eos_token in the model's tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # only ever masked out: masks come from lengths, not from ids


def load_pretrained(auto_class: Any, name: str | None, context: Context, **options: Any) -> Any:
    """`from_pretrained` of a transformers auto class, safetensors only, with an error a person can act on.

    Raises:
        ConfigError: nothing can be loaded from `name`, or it is a folder with pickles.
    """
    refuse_pickles(name, context.where)
    if "Model" in auto_class.__name__:
        options["use_safetensors"] = True  # of the hub, too
    try:
        return auto_class.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = "folder" if name and Path(name).exists() else "hub id (no folder is there)"
        fix = "check the path, relative to the registry file, or the network"
        if "tiktoken" in reason or "sentencepiece" in reason:  # what it takes to read a tokenizer.model
            fix = "pip install sentencepiece protobuf"
        if "trust_remote_code" in str(error):
            reason, fix = "it comes with code of its own", "read that code, then set trust_remote_code: true"
        raise ConfigError(
            context.where,
            f"cannot load {kind} {name!r}: {reason}",
            "a folder or hub id with config.json, safetensors weights and a tokenizer",
            fix,
        ) from error


def context_length(model: Any) -> int | None:
    """Most positions the model has, or None if it has no limit."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return None


def check_compiler(context: Context) -> None:
    """Raises ConfigError where nothing can be compiled."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if not context.device.startswith("cpu"):
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            f"{context.where} compile",
            "no C++ compiler",
            "one that torch.compile can call",
            "install g++ (Debian: apt-get install g++), name one in the variable CXX, or leave `compile` out",
        ) from None
