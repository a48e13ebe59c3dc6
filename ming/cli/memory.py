"""What a checkpoint needs in memory, told before anything is loaded.

    ming memory <repository | released> [--quantization 4bit] [--parts text,vision,speech] [--context 8192]

Weights are counted on a model without storage, with the layers that quantisation leaves alone. The peak of activations
is that of a real forward pass over tensors without storage, with attention that keeps no matrix of scores (SDPA's
memory-efficient kernels, flash attention). Not counted: the CUDA context (0.3 to 0.5 GB), the allocator's reserve,
workspaces of kernels.
"""

import argparse
import copy
import json
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BitsAndBytesConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import cached_file

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen
from ming.configuration_bailingmm import BailingMMConfig, BailingMMTalkerConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.quantization import KEPT_OF_IMAGE_GEN, with_skip_list

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
QUANTIZATION = {
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}
BLOCK, NESTED_BLOCK = 64, 256  # weights per scale of 4 bit, scales per scale of scales
PATCH, FRAMES_PER_SECOND, SANM_WIDTH = 14, 1000 / 60, 560
TALKER_CONTEXT = 2048  # tokens of a long piece with its voice
GIB = 2**30  # a card of 16 GB has 16 of these


@dataclass(frozen=True)
class Component:
    """Bytes of a part: weights, the cache of keys and values, and what its forward pass holds at its peak."""

    part: str
    weights: int
    cache: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Workload:
    """What the model is used for: tokens of prompt and reply, chats at once, pictures of (width, height), seconds."""

    context: int = 4096
    batch: int = 1
    images: int = 1
    image_size: tuple[int, int] = (896, 896)
    seconds: float = 30.0


class PeakMemory(TorchDispatchMode):
    """Bytes of all storages that are made inside, as far as they live: `now` and `peak`. `known` are not counted."""

    def __init__(self, known: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
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
    """What memory-efficient attention leaves behind: its output [B, L, heads, D]."""
    rows, heads, length, size = query.shape
    return query.new_empty(rows, length, heads, size), None


ATTENTION = "memory_estimate"


def peak_of(model: nn.Module, run: Callable[[], object]) -> int:
    """Peak of activations of a call, in bytes; its outputs are still held."""
    with torch.no_grad(), PeakMemory([*model.parameters(), *model.buffers()]) as memory:
        output = run()
    del output
    return memory.peak


def weight_bytes(model: nn.Module, quantization: BitsAndBytesConfig | None = None) -> dict[str, int]:
    """Bytes of a model's weights and buffers per top-level module, as they are once loaded."""
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
    """A model without storage, as loading makes it; of a quantised one the layers still have `dtype`."""
    config = copy.deepcopy(config)
    config.quantization_config = quantization
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(usual)


def configs(repository: str) -> dict[str, object]:
    """Configurations of a repository's parts: "main", and "detokenizer" and "image_gen" where it has them.

    Raises:
        OSError: there is no such repository or no config.json in it.
        ValueError: what is named cannot be a repository.
    """
    if repository == RELEASED:
        main = BailingMMConfig(talker_config=BailingMMTalkerConfig())
        return {"main": main, "detokenizer": AudioDetokenizerConfig(), "image_gen": ImageGenConfig()}
    if not Path(repository).is_dir() and repository.count("/") != 1:
        raise ValueError(f"{repository!r} is neither a directory nor a Hub id (owner/name) nor {RELEASED!r}")
    found: dict[str, object] = {"main": BailingMMConfig.from_pretrained(repository)}
    folders = {
        "audio_detokenizer": ("detokenizer", AudioDetokenizerConfig),
        "image_gen": ("image_gen", ImageGenConfig),
    }
    for folder, (name, config_class) in folders.items():
        options = {"subfolder": folder, "_raise_exceptions_for_missing_entries": False}
        if cached_file(repository, "config.json", **options) is not None:
            found[name] = config_class.from_pretrained(repository, subfolder=folder)
    return found


def estimate(
    repository: str,
    parts: Iterable[str] = PARTS,
    dtype: torch.dtype = torch.bfloat16,
    quantization: str | None = None,
    work: Workload = Workload(),
) -> list[Component]:
    """Bytes per part, without reading a weight.

    Args:
        repository: directory, Hub id, or "released" for the sizes of the release.
        parts: of `PARTS`; "text" is always there. Parts that the repository lacks are left out.
        dtype: of what is not quantised.
        quantization: None, "4bit" or "8bit".

    Raises:
        ValueError: an unknown part.
    """
    parts = list(dict.fromkeys(["text", *parts]))
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
    found = configs(repository)
    loaded = {"load_vision": "vision", "load_audio": "audio", "load_whisper": "audio", "load_talker": "speech"}
    for option, part in loaded.items():
        setattr(found["main"], option, getattr(found["main"], option) and part in parts)
    wanted = QUANTIZATION[quantization] if quantization else None
    main_class = BailingMMNativeForConditionalGeneration
    if wanted is not None:
        wanted = with_skip_list(wanted, lambda own: make(main_class, found["main"], dtype, own))
    sizes = dict.fromkeys(parts, 0)
    for module, size in weight_bytes(make(main_class, found["main"], dtype, wanted), wanted).items():
        sizes[MODULES[module]] += size
    # Experts without storage multiply in 16 bit only; what is twice as wide takes twice as much.
    width = torch.finfo(dtype).bits // 16
    peaks, caches = _main_work(make(main_class, found["main"], torch.bfloat16, None), work, torch.bfloat16)
    peaks, caches = ({part: width * size for part, size in sizes.items()} for sizes in (peaks, caches))
    if "speech" in parts and "detokenizer" in found:
        sizes["speech"] += sum(weight_bytes(make(AudioDetokenizer, found["detokenizer"], dtype, None)).values())
    if "image" in parts and "image_gen" in found:
        image_gen = make(ImageGen, found["image_gen"], dtype, None).to(dtype)
        if quantization:
            own = with_skip_list(QUANTIZATION[quantization], lambda _: image_gen, KEPT_OF_IMAGE_GEN)
        sizes["image"] = sum(weight_bytes(image_gen, own if quantization else None).values())
        peaks["image"] = _drawing_peak(image_gen, dtype)
    return [Component(part, sizes[part], caches.get(part, 0), peaks.get(part, 0)) for part in PARTS if sizes.get(part)]


def _main_work(model: nn.Module, work: Workload, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """Peaks and caches of the parts of the main model."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention_without_scores)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *args, **kwargs: None)
    model.set_attn_implementation(ATTENTION)
    config, size = model.config.llm_config, torch.finfo(dtype).bits // 8
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    caches = {"text": work.batch * work.context * per_token}
    ids = torch.zeros(work.batch, work.context, dtype=torch.long, device="meta")
    whole = peak_of(model, lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
    peaks = {"text": whole - caches["text"]}
    if model.config.load_vision and work.images:
        rows, columns = (2 * round(side / (2 * PATCH)) for side in reversed(work.image_size))
        peaks["vision"] = peak_of(model, lambda: _see(model, [rows * columns] * work.images, dtype))
    if model.config.load_audio and work.seconds:
        frames = int(work.seconds * FRAMES_PER_SECOND)
        sound = torch.empty(1, frames, SANM_WIDTH, dtype=dtype, device="meta")
        peaks["audio"] = peak_of(model, lambda: model.audio(sound, torch.tensor([frames], device="meta")))
    if hasattr(model, "talker"):
        llm = model.talker.config.llm_config
        head = llm.hidden_size // llm.num_attention_heads
        caches["speech"] = 2 * llm.num_hidden_layers * llm.num_key_value_heads * head * TALKER_CONTEXT * size
    return peaks, caches


def _see(model: nn.Module, patches: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The vision tower over pictures of so many patches; its own `forward` needs to know where the patches lie."""
    tower, count = model.vision, sum(patches)
    states = tower.patch_embed(torch.empty(count, 6 * PATCH**2, dtype=dtype, device="meta"))
    size = model.config.vision_config.hidden_size // model.config.vision_config.num_heads
    turns = tuple(torch.empty(count, size, dtype=dtype, device="meta") for _ in range(2))
    ends = torch.tensor([0, *patches]).cumsum(0)
    for block in tower.blocks:
        states = block(states, cu_seqlens=ends, position_embeddings=turns)
    return model.linear_proj(tower.merger(states))


def _drawing_peak(image_gen: nn.Module, dtype: torch.dtype) -> int:
    """Peak of one step with guidance and of the autoencoder, at the native size."""
    config = image_gen.config
    side = config.native_side // image_gen.vae.spatial_compression_ratio
    channels, num_queries = config.vae["latent_channels"], config.scales[-1] ** 2
    latents = torch.empty(2, channels, side, side, dtype=dtype, device="meta")
    captions = torch.empty(2, num_queries, config.transformer["caption_channels"], dtype=dtype, device="meta")
    time = torch.empty(2, device="meta")
    step = peak_of(image_gen, lambda: image_gen.transformer(latents, captions, time))
    return max(step, peak_of(image_gen, lambda: image_gen.vae.decode(latents[:1])))


def total(components: list[Component]) -> int:
    """Bytes of all weights and caches, and of the largest peak: the parts work one after another."""
    return sum(item.weights + item.cache for item in components) + max(item.activations for item in components)


def table(components: list[Component]) -> str:
    """Markdown table in GiB, the unit of graphics memory."""
    lines = ["| part | weights (GiB) | cache (GiB) | activations, peak (GiB) |", "|---|---|---|---|"]
    for item in components:
        row = (item.weights, item.cache, item.activations)
        lines.append(f"| {item.part} | " + " | ".join(f"{value / GIB:.3f}" for value in row) + " |")
    lines.append(f"| **all, one part at work** | **{total(components) / GIB:.3f}** | | |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ming.cli.memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("repository", help='directory, Hub id, or "released" for the sizes of the release')
    parser.add_argument("--quantization", choices=QUANTIZATION)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; text is always there")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and reply")
    parser.add_argument("--batch", type=int, default=1, help="chats at once")
    parser.add_argument("--images", type=int, default=1, help="pictures in a prompt")
    parser.add_argument("--image-size", default="896x896", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--seconds", type=float, default=30.0, help="of sound in a prompt")
    parser.add_argument("--json", action="store_true", help="bytes as JSON instead of a table")
    args = parser.parse_args()
    try:
        width, height = (int(side) for side in args.image_size.split("x"))
        work = Workload(args.context, args.batch, args.images, (width, height), args.seconds)
        dtype = getattr(torch, args.dtype)
        components = estimate(args.repository, args.parts.split(","), dtype, args.quantization, work)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.json:
        sys.stdout.write(
            json.dumps({"parts": [asdict(item) for item in components], "total": total(components)}) + "\n"
        )
    else:
        sys.stdout.write(table(components) + "\n")


if __name__ == "__main__":
    main()
