"""How the cost grows with prompt length, pixels, images, and seconds of audio input and speech output.

Encoders and decoder have released widths, a few layers and random weights; speech uses Ming-Tiny's audio detokenizer.
Times are divided by the time of the smallest input and by the growth of the input: 1.0 is linear growth, above 1 is
worse than linear.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.configuration_bailingmm import (
    BailingMMAudioConfig,
    BailingMMVisionConfig,
    BailingMMWhisperConfig,
    BailingMoeConfig,
)
from ming.modeling_bailing_moe import BailingMoeForCausalLM
from ming.modeling_encoders import BailingMMSanmEncoder, BailingMMVisionTransformer, BailingMMWhisperEncoder

from .report import Plot
from .timing import interleaved

ROOT = Path(__file__).resolve().parents[1]
SIDES = (224, 448, 672, 896)  # pixels; the released processor stops at 896 x 896
IMAGES = (1, 2, 4, 8)
IMAGE_SIDE = 224
SECONDS = (5, 10, 20, 40, 80)
PROMPTS = (128, 256, 512, 1024, 2048)  # tokens
SPOKEN = (2, 4, 8, 16)  # seconds
REPEATS = 5


Input = tuple[str, int, Callable[[], object]]  # name, tokens, call


@dataclass(frozen=True)
class Cost:
    """One measured input."""

    part: str
    size: str
    tokens: int
    milliseconds: float
    growth: float


def vision_tower() -> BailingMMVisionTransformer:
    """Released widths, 4 of 32 blocks; one in four attends to the whole image, as released one in eight."""
    return BailingMMVisionTransformer(BailingMMVisionConfig(depth=4, fullatt_block_indexes=[3])).eval()


def sanm_encoder() -> BailingMMSanmEncoder:
    """Released widths, 5 of 50 layers."""
    return BailingMMSanmEncoder(BailingMMAudioConfig(audio_encoder_config_sanm={"num_blocks": 5})).eval()


def whisper_encoder() -> BailingMMWhisperEncoder:
    """Released widths, 3 of 32 layers."""
    return BailingMMWhisperEncoder(BailingMMWhisperConfig(whisper_encoder_config={"n_layer": 3})).eval()


def _costs(part: str, inputs: list[Input]) -> Iterator[Cost]:
    times = [1000 * seconds for seconds in interleaved([call for _, _, call in inputs], REPEATS)]
    for (size, tokens, _), milliseconds in zip(inputs, times, strict=True):
        yield Cost(part, size, tokens, milliseconds, milliseconds / times[0] / (tokens / inputs[0][1]))


def decoder() -> BailingMoeForCausalLM:
    """Released widths, 1 of 28 layers, a small vocabulary."""
    sizes = {"num_hidden_layers": 1, "vocab_size": 1024, "image_patch_token": 1000, "pad_token_id": 0}
    return BailingMoeForCausalLM(BailingMoeConfig(**sizes, eos_token_id=0)).eval()


def prompt_costs(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over the tokens of a prompt."""
    model = decoder().to(device, dtype)
    inputs: list[Input] = []
    for length in PROMPTS:
        ids = torch.arange(length, device=device)[None] % 1000
        inputs.append((f"{length} tokens", length, partial(model, ids, logits_to_keep=1)))
    yield from _costs("prompt", inputs)


def image_costs(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over the pixels of an image, and over the number of images."""
    vision = vision_tower().to(device, dtype)

    def images(name: str, side: int, count: int) -> Input:
        patches = side // 14
        pixels = torch.randn(count * patches**2, 1176, device=device, dtype=dtype)
        grid = torch.tensor([[1, patches, patches]] * count, device=device)
        return name, len(pixels), partial(vision, pixels, grid_thw=grid)

    yield from _costs("vision", [images(f"{side} x {side} px", side, 1) for side in SIDES])
    yield from _costs("images", [images(f"{count} images", IMAGE_SIDE, count) for count in IMAGES])


def audio_costs(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over the seconds of a recording."""
    encoders = (("SANM", sanm_encoder(), 1000 / 60, 560), ("Whisper", whisper_encoder(), 100, 128))
    for part, encoder, rate, width in encoders:
        encoder = encoder.to(device, dtype)
        inputs: list[Input] = []
        for seconds in SECONDS:
            frames = torch.randn(1, int(seconds * rate), width, device=device, dtype=dtype)
            lengths = torch.tensor([frames.shape[1]], device=device)
            inputs.append((f"{seconds} s", frames.shape[1], partial(encoder, frames, lengths)))
        yield from _costs(part, inputs)


def speech_costs(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over the seconds of speech."""
    detokenizer = AudioDetokenizer.from_pretrained(ROOT / "audio_detokenizer", dtype=dtype).to(device).eval()
    flow = detokenizer.config.flow
    speaker = torch.randn(1, flow["spk_embed_dim"])
    inputs: list[Input] = []
    for seconds in SPOKEN:
        codes = torch.randint(flow["vocab_size"], (1, seconds * flow["input_frame_rate"]))
        inputs.append((f"{seconds} s", codes.shape[1], partial(detokenizer.decode, codes, speaker)))
    yield from _costs("speech", inputs)


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Cost]:
    """Time every part over growing inputs."""
    torch.manual_seed(0)
    parts = (prompt_costs, image_costs, audio_costs, speech_costs)
    return [cost for part in parts for cost in part(device, dtype)]


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    lines = ["| part | input | tokens in | ms | growth (1 = linear) |", "|---|---|---|---|---|"]
    lines += [f"| {c.part} | {c.size} | {c.tokens} | {c.milliseconds:.0f} | {c.growth:.2f} |" for c in costs]
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Time over input size, both relative to the smallest input."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for part in dict.fromkeys(cost.part for cost in costs):
        own = [cost for cost in costs if cost.part == part]
        times = [cost.milliseconds / own[0].milliseconds for cost in own]
        lines[part] = ([cost.tokens / own[0].tokens for cost in own], times)
    most = max(max(sizes) for sizes, _ in lines.values())
    lines["linear"] = ([1, most], [1, most])
    return Plot("time / the smallest input's", "size / the smallest input's", lines, logarithmic=True)
