"""Holding frozen weights in 4 bits (QLoRA: Dettmers et al., 2023, arXiv:2305.14314), by bitsandbytes.

Linear layers but the output layer are quantised in blocks of 64 weights; embeddings, norms and the output layer stay
whole. Products are computed in `compute_dtype` from weights that are made whole block by block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..importing import bitsandbytes
from ..interfaces import Context
from .config import Quantization

BLOCK = 64
"""Weights that share a scale."""


def compute_dtype(quantization: Quantization, context: Context) -> torch.dtype:
    """The dtype of products and of the layers that stay whole."""
    if quantization.compute_dtype != "auto":
        dtype: torch.dtype = getattr(torch, quantization.compute_dtype)
        return dtype
    if torch.device(context.device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # bitsandbytes computes in 16 and 32 bits only; in float64 it gives no numbers at all
    return torch.float32 if context.dtype == "float64" else context.torch_dtype


def quantizer(context: Context) -> Any:
    """The library bitsandbytes.

    Raises:
        ConfigError: it is missing, or cannot quantise on the context's device.
    """
    bnb = bitsandbytes(f"{context.where} quantization")
    device = torch.device(context.device).type
    if device not in bnb.supported_torch_devices:
        raise ConfigError(
            f"{context.where} quantization",
            f"device {device!r}",
            f"one of {', '.join(sorted(bnb.supported_torch_devices))}, where bitsandbytes {bnb.__version__} has 4 bits",
            "run on one of these, leave `quantization` out, or upgrade: pip install -U bitsandbytes",
        )
    return bnb


def loading_options(quantization: Quantization, context: Context) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise weights as they are read."""
    from transformers import BitsAndBytesConfig

    quantizer(context)
    dtype = compute_dtype(quantization, context)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "dtype": dtype, "device_map": {"": context.device}}


def quantize(model: Any, quantization: Quantization, context: Context) -> Any:
    """Quantise a model that is in memory, layer by layer, and put it on the context's device."""
    from transformers.pytorch_utils import Conv1D

    bnb = quantizer(context)
    dtype = compute_dtype(quantization, context)
    output = model.get_output_embeddings()
    kept = tuple(model._keep_in_fp32_modules or ())  # T5's `wo`, which transformers leaves whole as well
    model.to(dtype)
    for path, module in list(model.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)) or module is output:
            continue
        if path.endswith(kept):
            module.to(torch.float32 if dtype == torch.float16 else dtype)  # it overflows in float16
            continue
        weight = module.weight.data.T.contiguous() if isinstance(module, Conv1D) else module.weight.data  # (out, in)
        layer = linear_4bit(bnb, weight, module.bias, quantization)
        layer.source_cls = type(module)  # as transformers notes it
        model.set_submodule(path, layer.to(context.device))
        del module.weight, weight  # the whole weight goes before the next one is looked at
    model.is_loaded_in_4bit = True  # peft chooses its layers by this
    return settled(model.to(context.device), dtype, context)


def linear_4bit(bnb: Any, weight: Tensor, bias: Tensor | None, quantization: Quantization) -> Any:
    """A layer of bitsandbytes with `weight` (out, in), which is quantised as the layer is put on its device."""
    layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    options = {"compress_statistics": quantization.double, "quant_type": quantization.type}
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=layer, **options)
    layer.bias = bias
    return layer


def settled(model: Any, dtype: torch.dtype, context: Context) -> Any:
    """A quantised model whose layers compute in `dtype` and keep their format, whatever they are given first.

    Raises:
        ConfigError: on a CPU, a layer whose rows are not whole blocks.
    """
    for path, module in model.named_modules():
        if not is_4bit(module):
            continue
        width = module.weight.quant_state.shape[1]
        if width % BLOCK and torch.device(context.device).type == "cpu":
            raise ConfigError(
                f"{context.where} quantization",
                f"layer {path} reads {width} numbers",
                f"a multiple of {BLOCK}: on a CPU, bitsandbytes would scale others by the wrong blocks, without a word",
                "run on a GPU, take a wider model, or leave `quantization` out",
            )
        module.compute_dtype, module.compute_type_is_set = dtype, True
        # the repacking for inference on a CPU cannot be differentiated, and we train what we sample from
        module.support_avx512bf16_for_cpu = False
    return model


def is_4bit(module: nn.Module) -> bool:
    """Whether the weight of `module` itself is quantised."""
    weight = module._parameters.get("weight")
    return getattr(weight, "quant_state", None) is not None


def dequantized(module: Any) -> Tensor:
    """The weight of a 4-bit layer made whole, (out, in), in the dtype that it computes in."""
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    whole: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return whole.to(module.compute_dtype)


def was_turned(module: Any) -> bool:
    """Whether a 4-bit layer took the place of one whose weight is (in, out), such as GPT-2's."""
    from transformers.pytorch_utils import Conv1D

    return issubclass(module.source_cls, Conv1D)


def whole_size(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for; a 4-bit one holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
