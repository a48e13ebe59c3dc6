"""Objectives of drawing (Ming-Lite-Uni, arXiv 2505.02471, section 3): a fixed language model, a learnable image head.

One set of transformer blocks learns to denoise a picture at every scale of query tokens: small from the coarsest
states, full size from the finest. What trains the queries flows back through the language model, whose own weights are
frozen.

Shape letters: B pictures, n query tokens of a scale, H width of the language model, C latent channels, h x w latents.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from image_gen.modeling_image_gen import ImageGen

CONDITION_DROPOUT = 0.1  # share of pictures learned without a condition, for classifier-free guidance


def scale_sizes(image_gen: ImageGen, height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) in pixels of a picture at every scale, coarse to fine: its own size for the finest, and shares
    of that like those of the grids' sides, in whole latents."""
    factor = image_gen.vae.spatial_compression_ratio
    finest = image_gen.config.scales[-1]
    return [
        tuple(max(factor, round(side * scale / finest / factor) * factor) for side in (height, width))
        for scale in image_gen.config.scales
    ]


@torch.no_grad()
def encode_scales(image_gen: ImageGen, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Pictures [B, 3, H, W] in -1..1 -> scaled latents [B, C, h, w] at every scale, coarse to fine."""
    latents = []
    for size in scale_sizes(image_gen, *pixels.shape[-2:]):
        resized = F.interpolate(pixels, size, mode="bilinear", antialias=True) if size != pixels.shape[-2:] else pixels
        latents.append(image_gen.vae.encode(resized, return_dict=False)[0] * image_gen.vae.config.scaling_factor)
    return latents


def sample_sigmas(count: int, generator: torch.Generator | None = None, shift: float = 1.0) -> torch.Tensor:
    """Noise levels [count] in 0..1, logit-normal and shifted like those of the sampler (Esser et al., arXiv
    2403.03206, sections 3.1 and 5.3.2); the release does not show its own choice."""
    sigmas = torch.randn(count, generator=generator).sigmoid()
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def noised(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [B, C, h, w], noise alike, sigmas [B] -> noised latents and the velocity that the transformer must give.

    The straight path of flow matching (Lipman et al., arXiv 2210.02747), in the direction of the released sampler.
    """
    sigmas = sigmas.view(-1, 1, 1, 1)
    return (1 - sigmas) * latents + sigmas * noise, noise - latents


class AlignmentHead(nn.Module):
    """Middle block states [B, h * w, D] -> [B, h * w, C] to compare with clean latents; as released, 2240-4480-32.

    Linear layers start Kaiming-normal with zero bias, as released.
    """

    def __init__(self, image_gen: ImageGen):
        super().__init__()
        sizes = image_gen.config.transformer
        hidden_size, latent_channels = sizes["num_attention_heads"] * sizes["attention_head_dim"], sizes["in_channels"]
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.Linear(2 * hidden_size, latent_channels),
            nn.LayerNorm(latent_channels),
        )
        for layer in (self.layers[0], self.layers[2]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.layers(states)


def alignment_loss(head: AlignmentHead, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Representation alignment at one scale: mean squared error between the projected states of a middle block
    [B, h * w, D] and the clean latents [B, C, h, w] of the same places (the mean of those that a token stands for,
    where the transformer's patches are larger than one latent).

    The paper names the mean squared error and the release the block and the head, which ends in a layer norm over
    latent channels; the target is our choice: the clean latent of a place, normalised over its channels like the
    head's output.
    """
    patch = math.isqrt(latents.shape[-2] * latents.shape[-1] // states.shape[1])
    wanted = F.avg_pool2d(latents, patch).flatten(2).transpose(1, 2)
    return F.mse_loss(head(states), F.layer_norm(wanted, wanted.shape[-1:]))


@contextmanager
def middle_states(image_gen: ImageGen) -> Iterator[list[torch.Tensor]]:
    """Collects what the middle block of the transformer puts out, call after call: [B, h * w, D] each."""
    blocks, states = image_gen.transformer.transformer_blocks, []
    handle = blocks[len(blocks) // 2].register_forward_hook(lambda module, args, output: states.append(output))
    try:
        yield states
    finally:
        handle.remove()


@dataclass(frozen=True)
class DrawingLosses:
    """Scalars: `loss` = the mean of `flow` over scales + weight * the mean of `alignment`; both by scale, coarse to
    fine."""

    loss: torch.Tensor
    flow: list[torch.Tensor]
    alignment: list[torch.Tensor]


def drawing_loss(
    image_gen: ImageGen,
    states: Sequence[torch.Tensor],
    latents: Sequence[torch.Tensor],
    head: AlignmentHead | None = None,
    alignment_weight: float = 1.0,
    condition_dropout: float = CONDITION_DROPOUT,
    generator: torch.Generator | None = None,
    weights: Sequence[torch.Tensor] | None = None,
    noises: int = 1,
) -> DrawingLosses:
    """Flow matching at every scale, and the alignment of the scales where there is a `head`.

    Args:
        states: per scale [B, n, H], as `image_states` of the model gives them.
        latents: per scale, as from `encode_scales`.
        generator: of noise, noise levels and dropped conditions, on the CPU.
        weights: per scale [B, 1, h, w], how much the flow of a place counts; mean 1. None counts all alike.
        noises: how many times every picture is noised; its condition is made once.
    """
    flow, alignment = [], []
    scheduler = image_gen.config.scheduler
    with middle_states(image_gen) as collected:
        for scale, (scale_states, latent) in enumerate(zip(states, latents, strict=True)):
            clean = latent.repeat_interleave(noises, dim=0)
            rows = len(clean)
            sigmas = sample_sigmas(rows, generator, scheduler.get("shift", 1.0)).to(clean)
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            kept = (torch.rand(rows, generator=generator) >= condition_dropout).to(clean.device)
            condition = image_gen.condition(scale_states)
            wanted = image_gen.mlp(condition).repeat_interleave(noises, dim=0)
            wanted = torch.where(kept[:, None, None], wanted, image_gen.mlp(torch.zeros_like(condition[:1])))
            values, velocity = noised(clean, noise, sigmas)
            predicted = image_gen.transformer(
                values,
                encoder_hidden_states=wanted,
                timestep=sigmas * scheduler["num_train_timesteps"],
                return_dict=False,
            )[0]
            error = (predicted - velocity).square()
            if weights is not None:
                error = error * weights[scale].repeat_interleave(noises, dim=0)
            flow.append(error.mean())
            if head is not None:
                alignment.append(alignment_loss(head, collected[-1], clean))
    loss = torch.stack(flow).mean()
    if alignment:
        loss = loss + alignment_weight * torch.stack(alignment).mean()
    return DrawingLosses(loss, flow, alignment)
