"""How cost grows with the length of the prompt, pixels, pictures, and seconds heard and spoken.

Encoders and decoder of released widths with a few layers and random weights; speech by Ming-Tiny's audio detokenizer.
Times are divided by the time of the smallest input and by the growth of the input: 1.0 is linear growth, above 1 is
worse than linear.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
PICTURES = (1, 2, 4, 8)
PICTURE_SIDE = 224
SECONDS = (5, 10, 20, 40, 80)
PROMPTS = (128, 256, 512, 1024, 2048)  # tokens
SPOKEN = (2, 4, 8, 16)  # seconds
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """One measured input."""

    part: str
    size: str
    tokens: int
    milliseconds: float
    growth: float


def vision_tower() -> BailingMMVisionTransformer:
    """Released widths, 4 of 32 blocks; one in eight attends to the whole picture as released, here one in four."""
    return BailingMMVisionTransformer(BailingMMVisionConfig(depth=4, fullatt_block_indexes=[3])).eval()


def sanm_encoder() -> BailingMMSanmEncoder:
    """Released widths, 5 of 50 layers."""
    return BailingMMSanmEncoder(BailingMMAudioConfig(audio_encoder_config_sanm={"num_blocks": 5})).eval()


def whisper_encoder() -> BailingMMWhisperEncoder:
    """Released widths, 3 of 32 layers."""
    return BailingMMWhisperEncoder(BailingMMWhisperConfig(whisper_encoder_config={"n_layer": 3})).eval()


def _costs(part: str, inputs: list[tuple[str, int, Callable[[], object]]]) -> Iterator[Cost]:
    times = [1000 * seconds for seconds in interleaved([call for _, _, call in inputs], REPEATS)]
    for (size, tokens, _), milliseconds in zip(inputs, times, strict=True):
        yield Cost(part, size, tokens, milliseconds, milliseconds / times[0] / (tokens / inputs[0][1]))


def decoder() -> BailingMoeForCausalLM:
    """Released widths, 1 of 28 layers, a small vocabulary."""
    sizes = {"num_hidden_layers": 1, "vocab_size": 1024, "image_patch_token": 1000, "pad_token_id": 0}
    return BailingMoeForCausalLM(BailingMoeConfig(**sizes, eos_token_id=0)).eval()


def reading(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over tokens of a prompt."""
    model = decoder().to(device, dtype)
    inputs = []
    for length in PROMPTS:
        ids = torch.arange(length, device=device)[None] % 1000
        inputs.append((f"{length} tokens", length, lambda ids=ids: model(ids, logits_to_keep=1)))
    yield from _costs("prompt", inputs)


def seeing(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over pixels of a picture, and over pictures."""
    vision = vision_tower().to(device, dtype)

    def look(side: int, count: int) -> tuple[int, Callable[[], object]]:
        patches = side // 14
        pixels = torch.randn(count * patches**2, 1176, device=device, dtype=dtype)
        grid = torch.tensor([[1, patches, patches]] * count, device=device)
        return len(pixels), lambda: vision(pixels, grid_thw=grid)

    yield from _costs("vision", [(f"{side} x {side} px", *look(side, 1)) for side in SIDES])
    yield from _costs("pictures", [(f"{count} pictures", *look(PICTURE_SIDE, count)) for count in PICTURES])


def hearing(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over seconds of a recording."""
    encoders = (("SANM", sanm_encoder(), 1000 / 60, 560), ("Whisper", whisper_encoder(), 100, 128))
    for part, encoder, rate, width in encoders:
        encoder = encoder.to(device, dtype)
        inputs = []
        for seconds in SECONDS:
            frames = torch.randn(1, int(seconds * rate), width, device=device, dtype=dtype)
            lengths = torch.tensor([frames.shape[1]], device=device)
            call = lambda f=frames, n=lengths, encoder=encoder: encoder(f, n)  # noqa: E731
            inputs.append((f"{seconds} s", frames.shape[1], call))
        yield from _costs(part, inputs)


def speaking(device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Over seconds of speech."""
    detokenizer = AudioDetokenizer.from_pretrained(ROOT / "audio_detokenizer", dtype=dtype).to(device).eval()
    flow = detokenizer.config.flow
    speaker, inputs = torch.randn(1, flow["spk_embed_dim"]), []
    for seconds in SPOKEN:
        codes = torch.randint(flow["vocab_size"], (1, seconds * flow["input_frame_rate"]))
        inputs.append((f"{seconds} s", codes.shape[1], lambda codes=codes: detokenizer.decode(codes, speaker)))
    yield from _costs("speech", inputs)


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Cost]:
    """Time every part over growing inputs."""
    torch.manual_seed(0)
    return [cost for part in (reading, seeing, hearing, speaking) for cost in part(device, dtype)]


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    lines = ["| part | input | tokens in | ms | growth (1 = linear) |", "|---|---|---|---|---|"]
    lines += [f"| {c.part} | {c.size} | {c.tokens} | {c.milliseconds:.0f} | {c.growth:.2f} |" for c in costs]
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Time over the size of the input, each in the smallest one's."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for part in dict.fromkeys(cost.part for cost in costs):
        own = [cost for cost in costs if cost.part == part]
        times = [cost.milliseconds / own[0].milliseconds for cost in own]
        lines[part] = ([cost.tokens / own[0].tokens for cost in own], times)
    most = max(max(sizes) for sizes, _ in lines.values())
    lines["linear"] = ([1, most], [1, most])
    return Plot("time / the smallest input's", "size / the smallest input's", lines, logarithmic=True)
