"""How the cost of seeing and hearing grows with pixels and seconds.

Encoders of released widths with a few layers and random weights, on this machine. Times are divided by the time of
the smallest input and by the growth of the input: 1.0 is linear growth, above 1 is worse than linear.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from configuration_bailingmm import BailingMMAudioConfig, BailingMMVisionConfig, BailingMMWhisperConfig
from modeling_bailingmm_encoders import BailingMMSanmEncoder, BailingMMVisionTransformer, BailingMMWhisperEncoder

from .timing import interleaved

SIDES = (224, 448, 672, 896)  # pixels; the released processor stops at 896 x 896
SECONDS = (5, 10, 20, 40, 80)
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


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Cost]:
    """Time the three encoders over growing inputs."""
    torch.manual_seed(0)
    vision = vision_tower().to(device, dtype)
    sanm, whisper = sanm_encoder().to(device, dtype), whisper_encoder().to(device, dtype)
    pictures = []
    for side in SIDES:
        patches = side // 14
        pixels = torch.randn(patches**2, 1176, device=device, dtype=dtype)
        grid = torch.tensor([[1, patches, patches]], device=device)
        pictures.append(
            (f"{side} x {side} px", patches**2, lambda pixels=pixels, grid=grid: vision(pixels, grid_thw=grid))
        )
    costs = list(_costs("vision", pictures))
    for part, encoder, rate, width in (("SANM", sanm, 1000 / 60, 560), ("Whisper", whisper, 100, 128)):
        recordings = []
        for seconds in SECONDS:
            frames = torch.randn(1, int(seconds * rate), width, device=device, dtype=dtype)
            lengths = torch.tensor([frames.shape[1]], device=device)
            recordings.append(
                (f"{seconds} s", frames.shape[1], lambda f=frames, n=lengths, encoder=encoder: encoder(f, n))
            )
        costs += _costs(part, recordings)
    return costs


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    lines = ["| part | input | tokens in | ms | growth (1 = linear) |", "|---|---|---|---|---|"]
    lines += [f"| {c.part} | {c.size} | {c.tokens} | {c.milliseconds:.0f} | {c.growth:.2f} |" for c in costs]
    return "\n".join(lines)
