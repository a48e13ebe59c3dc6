"""Loading in 4 or 8 bit: which layers keep their precision, and what cannot be quantised.

    from_pretrained(repository, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))

Quantised are the linear layers of the decoder (attention, shared and routed experts, each expert a module of its own
so that only those that were hit are dequantised), of the encoders and of the talker. Embeddings, norms, routers and
convolutions are no linear layers and stay as they are, and so do the layers of `UNQUANTIZED`. The audio detokenizer is
small and is loaded unquantised.
"""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.quantizers.quantizers_utils import should_convert_module

# Linear layers that stay in full precision, as patterns over whole parts of their names: small layers in which an
# error costs a lot.
UNQUANTIZED = ("lm_head", r"linear_proj(_\w+)?", "thinker_to_talker_proj")
# bitsandbytes 0.50 on a CPU: with other sizes dequantisation is wrong or fails.
IN_MULTIPLE, OUT_MULTIPLE = 64, 32
# Of the image head: all but the attention and feed-forward layers of connector and transformer.
IMAGE_GEN_UNQUANTIZED = ("vae", r"mlp\.fc[12]", "proj_in", "proj_out", "time_embed", "caption_projection")
# Arguments of `from_pretrained` that say where a configuration lies.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def is_quantized(config) -> bool:
    """Whether a configuration asks for quantisation; quantisers know linear layers, not stacks of experts."""
    return getattr(config, "quantization_config", None) is not None


def four_bit(dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantization that `--load-in-4bit` means; matrices are multiplied in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def has_unfit_sizes(module: nn.Linear) -> bool:
    """Whether a layer has sizes that cannot be quantised everywhere."""
    return bool(module.in_features % IN_MULTIPLE or module.out_features % OUT_MULTIPLE)


def with_skip_list(quantization, build: Callable[[Any], nn.Module], unquantized: tuple[str, ...] = UNQUANTIZED):
    """A quantisation with the names of all layers that must be left alone.

    Args:
        quantization: what the user passes as `quantization_config`.
        build: quantisation -> the model that will be loaded; called where tensors have no storage.
        unquantized: see `UNQUANTIZED`.
    Returns:
        A copy, filled in, of a bitsandbytes configuration; one of another method as it is.

    Raises:
        ValueError: the user's own list lets through a layer that cannot be quantised.
    """
    if isinstance(quantization, dict):
        quantization = AutoQuantizationConfig.from_dict(quantization)
    if not isinstance(quantization, BitsAndBytesConfig):
        return quantization
    quantization = copy.deepcopy(quantization)
    with torch.device("meta"):
        model = build(quantization)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    odd = [name for name, module in layers.items() if has_unfit_sizes(module)]
    chosen = quantization.llm_int8_skip_modules
    if chosen is None:
        is_unquantized = re.compile(rf"(?:^|\.)(?:{'|'.join(unquantized)})(?:\.|$)")
        quantization.llm_int8_skip_modules = sorted({*odd, *filter(is_unquantized.search, layers)})
    elif through := [name for name in odd if should_convert_module(name, chosen)]:
        sizes = f"{layers[through[0]].in_features} to {layers[through[0]].out_features}"
        raise ValueError(
            f"quantization_config: {through[0]} ({sizes} features) and {len(through) - 1} more layers cannot be "
            f"quantised: sizes must be multiples of {IN_MULTIPLE} and {OUT_MULTIPLE}. Add them to "
            "llm_int8_skip_modules, or leave it out: the default list does"
        )
    return quantization


def quantization_of_call(model_class: Any, source, options: dict):
    """The `quantization_config` of a call of `model_class.from_pretrained(source, **options)`, filled in."""
    config = options.get("config")
    if config is None:
        where = {name: options[name] for name in HUB_OPTIONS if name in options}
        config = model_class.config_class.from_pretrained(source, **where)

    def build(quantization):
        own = copy.deepcopy(config)
        own.quantization_config = quantization
        return model_class(own)

    return with_skip_list(options["quantization_config"], build)


def quantization_of_image_gen(quantization, build: Callable[[], nn.Module]):
    """The configuration that quantises the image head as `quantization` does the main model."""
    own = copy.deepcopy(quantization)
    if isinstance(own, dict):
        own = AutoQuantizationConfig.from_dict(own)
    own.llm_int8_skip_modules = None
    return with_skip_list(own, lambda _: build(), IMAGE_GEN_UNQUANTIZED)


__all__ = ["four_bit", "is_quantized", "quantization_of_call", "quantization_of_image_gen", "with_skip_list"]
