"""Estimate the memory that a checkpoint needs, without loading it.

    ming memory REPOSITORY [--quantization 4bit] [--parts text,vision,speech] [--context 8192]

The weights are counted on a model without storage, including the layers that quantisation leaves alone. The peak of
the activations comes from a real forward pass over tensors without storage; its attention keeps no matrix of scores,
like SDPA's memory-efficient kernels and flash attention. Not counted: the CUDA context (0.3 to 0.5 GB), the reserve
of the allocator, and the workspaces of kernels.
"""

import argparse
import copy
import json
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BitsAndBytesConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.quantizers.quantizers_utils import should_convert_module

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen
from ming.cli.arguments import image_size, real_number, whole_number
from ming.cli.checks import find_model, read_config
from ming.cli.usage import Parser, user_input
from ming.components import AUDIO_DETOKENIZER, IMAGE_GEN
from ming.configuration_bailingmm import BailingMMConfig, BailingMMTalkerConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.quantization import IMAGE_GEN_UNQUANTIZED, with_skip_list
from ming.source import CheckpointSource

PARTS = ("text", "vision", "audio", "speech", "image")
RELEASED = "released"
# Top-level modules of the main model -> part.
MODULES = {
    "model": "text",
    "vision": "vision",
    "linear_proj": "vision",
    "audio": "audio",
    "linear_proj_audio": "audio",
    "whisper_encoder": "audio",
    "linear_proj_whisper": "audio",
    "talker": "speech",
}
# Option of the configuration that loads a part -> the part.
LOADED_BY = {"load_vision": "vision", "load_audio": "audio", "load_whisper": "audio", "load_talker": "speech"}
QUANTIZATION = {
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}
BLOCK, NESTED_BLOCK = 64, 256  # 4 bit: weights per scale, and scales per scale of the nested quantisation
PATCH, FRAMES_PER_SECOND, SANM_WIDTH = 14, 1000 / 60, 560
# Of a workload: beyond them sizes overflow, or the estimate takes minutes.
MOST, MOST_IMAGES, MAX_SIDE, MOST_SECONDS = 1_000_000, 1_000, 16_384, 100_000
TALKER_CONTEXT = 2048  # tokens of a long piece of text with its voice prompt
GIB = 2**30  # a GPU of 16 GB has 16 of these


@dataclass(frozen=True)
class PartMemory:
    """Bytes of a part: its weights, its key-value cache, and the peak of the activations of its forward pass."""

    part: str
    weights: int
    cache: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Workload:
    """What the model is used for.

    Args:
        context: tokens of prompt and reply.
        batch: chats at once.
        images: images in a prompt.
        image_size: their (width, height) in pixels.
        seconds: audio in a prompt.
    """

    context: int = 4096
    batch: int = 1
    images: int = 1
    image_size: tuple[int, int] = (896, 896)
    seconds: float = 30.0


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are created inside this context: alive `now`, and at the `peak`.

    The library's `torch.distributed._tools.mem_tracker.MemTracker` does more, but is private.

    Args:
        known: tensors whose storage is not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Call an operator and note the storages of its outputs."""
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live or key in self.known:
            return

        def gone(_) -> None:
            self.live.pop(key, None)
            self.now -= size

        self.live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _attention_without_scores(module, query, key, value, attention_mask, **kwargs):
    """The output [B, L, heads, D] of memory-efficient attention, and no scores."""
    rows, heads, length, size = query.shape
    return query.new_empty(rows, length, heads, size), None


ATTENTION = "memory_estimate"


def peak_of(model: nn.Module, run: Callable[[], object]) -> int:
    """Peak of the activations of a call, in bytes, its outputs included."""
    with torch.no_grad(), PeakMemory([*model.parameters(), *model.buffers()]) as memory:
        output = run()
    del output
    return memory.peak


def weight_bytes(model: nn.Module, quantization: BitsAndBytesConfig | None = None) -> dict[str, int]:
    """Bytes of the loaded weights and buffers of a model, per top-level module."""
    sizes: dict[str, int] = {}
    precise = set(model._keep_in_fp32_modules_strict or ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        top = name.split(".")[0]
        sizes[top] = sizes.get(top, 0) + tensor.numel() * (4 if top in precise else tensor.element_size())
    if quantization is None:
        return sizes
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and should_convert_module(name, quantization.llm_int8_skip_modules):
            weight = layer.weight
            saved = weight.numel() * weight.element_size() - quantised_bytes(layer, quantization)
            sizes[name.split(".")[0]] -= saved
    return sizes


def quantised_bytes(layer: nn.Linear, quantization: BitsAndBytesConfig) -> int:
    """Bytes of a layer's weight in 8 bit (a scale per row) or 4 bit (a scale per block, themselves quantised)."""
    count = layer.weight.numel()
    if quantization.load_in_8bit:
        return count + 4 * layer.out_features
    scales = -(-count // BLOCK)
    if not quantization.bnb_4bit_use_double_quant:
        return count // 2 + 4 * scales + 4 * 16
    return count // 2 + scales + 4 * -(-scales // NESTED_BLOCK) + 4 * (16 + 256 + 1)


def make(model_class: type, config, dtype: torch.dtype, quantization: BitsAndBytesConfig | None) -> nn.Module:
    """A model without storage, as loading creates it; layers to be quantised still have `dtype`."""
    config = copy.deepcopy(config)
    config.quantization_config = quantization
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(usual)


def configs(repository: str) -> dict[str, Any]:
    """Configurations of a repository: "main", and "audio_detokenizer" and "image_gen" if it has them.

    Raises:
        UsageError: there is no such repository, or it is none of this kind of model.
    """
    if repository == RELEASED:
        main = BailingMMConfig(talker_config=BailingMMTalkerConfig())
        return {"main": main, AUDIO_DETOKENIZER: AudioDetokenizerConfig(), IMAGE_GEN: ImageGenConfig()}
    repository = find_model(repository, "repository")
    found: dict[str, Any] = {"main": read_config(repository, "repository")}
    source = CheckpointSource(repository)
    for folder, config_class in ((AUDIO_DETOKENIZER, AudioDetokenizerConfig), (IMAGE_GEN, ImageGenConfig)):
        if source.has_component(folder):
            found[folder] = config_class.from_pretrained(repository, subfolder=folder)
    return found


def estimate(
    repository: str,
    parts: Iterable[str] = PARTS,
    dtype: torch.dtype = torch.bfloat16,
    quantization: str | None = None,
    work: Workload = Workload(),
) -> list[PartMemory]:
    """Bytes per part; no weights are read.

    Args:
        repository: directory, Hub id, or "released" for the sizes of the release.
        parts: a selection of `PARTS`; "text" is always included. Parts that the repository lacks are left out.
        dtype: of the weights that are not quantised, and of the activations.
        quantization: None, "4bit" or "8bit".

    Raises:
        ValueError: an unknown part.
    """
    parts = list(dict.fromkeys(["text", *parts]))
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
    found = configs(repository)
    main = found["main"]
    for option, part in LOADED_BY.items():
        setattr(main, option, getattr(main, option) and part in parts)
    sizes = dict.fromkeys(parts, 0)
    for module, size in _main_weights(main, dtype, quantization).items():
        sizes[MODULES[module]] += size
    peaks, caches = _main_work(make(BailingMMNativeForConditionalGeneration, main, torch.bfloat16, None), work)
    # Experts without storage multiply in 16 bit only; a type of twice the width takes twice the memory.
    width = torch.finfo(dtype).bits // 16
    peaks, caches = ({part: width * size for part, size in sizes.items()} for sizes in (peaks, caches))
    if "speech" in parts and AUDIO_DETOKENIZER in found:
        sizes["speech"] += sum(weight_bytes(make(AudioDetokenizer, found[AUDIO_DETOKENIZER], dtype, None)).values())
    if "image" in parts and IMAGE_GEN in found:
        image_gen = make(ImageGen, found[IMAGE_GEN], dtype, None).to(dtype)
        sizes["image"] = _image_gen_weights(image_gen, quantization)
        peaks["image"] = _image_gen_peak(image_gen, dtype)
    return [
        PartMemory(part, sizes[part], caches.get(part, 0), peaks.get(part, 0)) for part in PARTS if sizes.get(part)
    ]


def _main_weights(config, dtype: torch.dtype, quantization: str | None) -> dict[str, int]:
    """Bytes of the main model per top-level module."""
    model_class = BailingMMNativeForConditionalGeneration
    if quantization is None:
        return weight_bytes(make(model_class, config, dtype, None))
    with_list = with_skip_list(QUANTIZATION[quantization], lambda own: make(model_class, config, dtype, own))
    return weight_bytes(make(model_class, config, dtype, with_list), with_list)


def _image_gen_weights(image_gen: nn.Module, quantization: str | None) -> int:
    """Bytes of the image head."""
    if quantization is None:
        return sum(weight_bytes(image_gen).values())
    with_list = with_skip_list(QUANTIZATION[quantization], lambda _: image_gen, IMAGE_GEN_UNQUANTIZED)
    return sum(weight_bytes(image_gen, with_list).values())


def _main_work(model: nn.Module, work: Workload) -> tuple[dict[str, int], dict[str, int]]:
    """Peaks and caches of the parts of the main model, which is in bfloat16."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention_without_scores)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *args, **kwargs: None)
    model.set_attn_implementation(ATTENTION)
    config = model.config.llm_config
    caches = {"text": cache_bytes(config, config.head_dim, work.batch * work.context)}
    ids = torch.zeros(work.batch, work.context, dtype=torch.long, device="meta")
    whole = peak_of(model, lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
    peaks = {"text": whole - caches["text"]}
    if model.config.load_vision and work.images:
        rows, columns = (2 * round(side / (2 * PATCH)) for side in reversed(work.image_size))
        peaks["vision"] = peak_of(model, lambda: _encode_images(model, [rows * columns] * work.images))
    if model.config.load_audio and work.seconds:
        frames = int(work.seconds * FRAMES_PER_SECOND)
        features = torch.empty(1, frames, SANM_WIDTH, dtype=torch.bfloat16, device="meta")
        peaks["audio"] = peak_of(model, lambda: model.audio(features, torch.tensor([frames], device="meta")))
    if hasattr(model, "talker"):
        llm = model.talker.config.llm_config
        caches["speech"] = cache_bytes(llm, llm.hidden_size // llm.num_attention_heads, TALKER_CONTEXT)
    return peaks, caches


def cache_bytes(config, head_dim: int, tokens: int) -> int:
    """Bytes of the bfloat16 key-value cache of a decoder."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * tokens


def _encode_images(model: nn.Module, patches: list[int]) -> torch.Tensor:
    """The vision tower on images of so many patches each.

    The `forward` of the tower cannot run here: it computes positions from the values of a grid.
    """
    tower, count = model.vision, sum(patches)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
    states = tower.patch_embed(torch.empty(count, 6 * PATCH**2, **options))
    size = model.config.vision_config.hidden_size // model.config.vision_config.num_heads
    cos, sin = torch.empty(count, size, **options), torch.empty(count, size, **options)
    ends = torch.tensor([0, *patches]).cumsum(0)
    for block in tower.blocks:
        states = block(states, cu_seqlens=ends, position_embeddings=(cos, sin))
    return model.linear_proj(tower.merger(states))


def _image_gen_peak(image_gen: nn.Module, dtype: torch.dtype) -> int:
    """The larger peak of a denoising step with guidance and of the autoencoder's decoder, at the native size."""
    config = image_gen.config
    side = config.native_side // image_gen.vae.spatial_compression_ratio
    channels, num_queries = config.vae["latent_channels"], config.scales[-1] ** 2
    latents = torch.empty(2, channels, side, side, dtype=dtype, device="meta")
    captions = torch.empty(2, num_queries, config.transformer["caption_channels"], dtype=dtype, device="meta")
    time = torch.empty(2, device="meta")
    step = peak_of(image_gen, lambda: image_gen.transformer(latents, captions, time))
    return max(step, peak_of(image_gen, lambda: image_gen.vae.decode(latents[:1])))


def total(components: list[PartMemory]) -> int:
    """Bytes of all weights and caches, and of the largest peak, since the parts run one after another."""
    return sum(item.weights + item.cache for item in components) + max(item.activations for item in components)


def table(components: list[PartMemory]) -> str:
    """Markdown table in GiB, the unit of GPU memory."""
    lines = ["| part | weights (GiB) | cache (GiB) | activations, peak (GiB) |", "|---|---|---|---|"]
    for item in components:
        row = (item.weights, item.cache, item.activations)
        lines.append(f"| {item.part} | " + " | ".join(f"{value / GIB:.3f}" for value in row) + " |")
    lines.append(f"| **all, one part at work** | **{total(components) / GIB:.3f}** | | |")
    return "\n".join(lines)


def part_names(text: str) -> list[str]:
    """The kind of an option that takes parts of the model, for argparse."""
    parts = text.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(map(repr, unknown))}; give {', '.join(PARTS)}")
    return parts


def main(arguments: list[str] | None = None) -> None:
    """Print the estimate.

    Raises:
        UsageError: the repository or an option cannot be used.
    """
    parser = Parser("memory", __doc__)
    parser.add_argument("repository", help=f'directory, Hub id, or "{RELEASED}" for the sizes of the release')
    parser.add_argument("--quantization", choices=QUANTIZATION)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    text = "comma-separated; text is always included"
    parser.add_argument("--parts", type=part_names, default=list(PARTS), help=text)
    parser.add_argument("--context", type=whole_number(1, MOST), default=4096, help="tokens of prompt and reply")
    parser.add_argument("--batch", type=whole_number(1, MOST), default=1, help="chats at once")
    parser.add_argument("--images", type=whole_number(0, MOST_IMAGES), default=1, help="images in a prompt")
    size = image_size(2 * PATCH, MAX_SIDE)
    parser.add_argument("--image-size", type=size, default=(896, 896), help="WIDTHxHEIGHT in pixels")
    seconds = real_number(0, MOST_SECONDS)
    parser.add_argument("--seconds", type=seconds, default=30.0, help="seconds of audio in a prompt")
    parser.add_argument("--json", action="store_true", help="print bytes as JSON instead of a table")
    args = parser.parse_args(arguments)
    with user_input():
        work = Workload(args.context, args.batch, args.images, args.image_size, args.seconds)
        components = estimate(args.repository, args.parts, getattr(torch, args.dtype), args.quantization, work)
    if args.json:
        record = {"parts": [asdict(item) for item in components], "total": total(components)}
        sys.stdout.write(json.dumps(record) + "\n")
    else:
        sys.stdout.write(table(components) + "\n")
