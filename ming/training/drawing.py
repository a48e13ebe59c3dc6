"""Training losses of the image head (Ming-Lite-Uni, arXiv 2505.02471, section 3); the language model stays frozen.

One set of transformer blocks learns to denoise an image at every scale of query tokens: a small image from the states
of the coarsest scale, the full size from the finest. The gradients of the query tokens flow back through the frozen
language model.

Shape letters: B images, n query tokens of a scale, H width of the language model, D width of the transformer,
C latent channels, h x w latents.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from image_gen.modeling_image_gen import ImageGen

CONDITION_DROPOUT = 0.1  # share of images learned without a condition, for classifier-free guidance


def scale_sizes(image_gen: ImageGen, height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) in pixels of an image at every scale, coarse to fine.

    The finest scale has the size of the image. The others have the same share of it as their grids have of the finest
    grid's side, rounded to whole latents.
    """
    factor = image_gen.vae.spatial_compression_ratio
    finest = image_gen.config.scales[-1]

    def scaled(side: int, scale: int) -> int:
        return max(factor, round(side * scale / finest / factor) * factor)

    return [(scaled(height, scale), scaled(width, scale)) for scale in image_gen.config.scales]


@torch.no_grad()
def encode_scales(image_gen: ImageGen, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Images [B, 3, H, W] in -1..1 -> scaled latents [B, C, h, w] at every scale, coarse to fine."""
    latents = []
    for size in scale_sizes(image_gen, *pixels.shape[-2:]):
        resized = F.interpolate(pixels, size, mode="bilinear", antialias=True) if size != pixels.shape[-2:] else pixels
        latents.append(image_gen.vae.encode(resized, return_dict=False)[0] * image_gen.vae.config.scaling_factor)
    return latents


def sample_sigmas(count: int, generator: torch.Generator | None = None, shift: float = 1.0) -> torch.Tensor:
    """Noise levels [count] in 0..1, logit-normal and shifted like those of the sampler.

    See Esser et al., arXiv 2403.03206, sections 3.1 and 5.3.2; the release does not show its own choice.
    """
    sigmas = torch.randn(count, generator=generator).sigmoid()
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def noised(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noised latents and the velocity that the transformer must predict, both [B, C, h, w].

    The straight path of flow matching (Lipman et al., arXiv 2210.02747), in the direction of the released sampler.

    Args:
        latents, noise: [B, C, h, w].
        sigmas: [B].
    """
    sigmas = sigmas.view(-1, 1, 1, 1)
    return (1 - sigmas) * latents + sigmas * noise, noise - latents


class AlignmentHead(nn.Module):
    """Projects middle block states [B, h * w, D] to [B, h * w, C], the space of clean latents; released: 2240-4480-32.

    The linear layers start Kaiming-normal with zero bias, as released.
    """

    def __init__(self, image_gen: ImageGen):
        super().__init__()
        sizes = image_gen.config.transformer
        hidden_size, latent_channels = sizes["num_attention_heads"] * sizes["attention_head_dim"], sizes["in_channels"]
        widen, project = nn.Linear(hidden_size, 2 * hidden_size), nn.Linear(2 * hidden_size, latent_channels)
        for layer in (widen, project):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(widen, nn.GELU(), project, nn.LayerNorm(latent_channels))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[B, h * w, D] -> [B, h * w, C]."""
        return self.layers(states)


def alignment_loss(head: AlignmentHead, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Representation alignment at one scale, a scalar.

    It is the mean squared error between the projected states of a middle block [B, h * w, D] and the clean latents
    [B, C, h, w] of the same places. Where the patches of the transformer are larger than one latent, a state is
    compared with the mean of the latents of its patch.

    The paper names the mean squared error; the release shows the block and the head, which ends in a layer norm over
    latent channels. The target is our choice: the clean latent of a place, normalised over its channels like the
    output of the head.
    """
    patch = math.isqrt(latents.shape[-2] * latents.shape[-1] // states.shape[1])
    target = F.avg_pool2d(latents, patch).flatten(2).transpose(1, 2)
    return F.mse_loss(head(states), F.layer_norm(target, target.shape[-1:]))


@contextmanager
def middle_states(image_gen: ImageGen) -> Iterator[list[torch.Tensor]]:
    """Collect the output [B, h * w, D] of the transformer's middle block, one item per call."""
    blocks = image_gen.transformer.transformer_blocks
    states: list[torch.Tensor] = []
    handle = blocks[len(blocks) // 2].register_forward_hook(lambda module, args, output: states.append(output))
    try:
        yield states
    finally:
        handle.remove()


@dataclass(frozen=True)
class DrawingLosses:
    """Scalars; `flow` and `alignment` have one per scale, coarse to fine.

    `loss` is the mean of `flow` plus the alignment weight times the mean of `alignment`.
    """

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
    """Flow matching at every scale; with a `head` also representation alignment at every scale.

    Args:
        states: per scale [B, n, H], what `model.drawing.states` returns.
        latents: per scale [B, C, h, w], from `encode_scales`.
        generator: for noise, noise levels and dropped conditions; on the CPU.
        weights: per scale [B, 1, h, w] with mean 1, the weight of each place in the flow loss. None: equal weights.
        noises: how often every image is noised; its condition is computed once.
    """
    flow: list[torch.Tensor] = []
    alignment: list[torch.Tensor] = []
    scheduler = image_gen.config.scheduler
    with middle_states(image_gen) as collected:
        for scale, (scale_states, latent) in enumerate(zip(states, latents, strict=True)):
            clean = latent.repeat_interleave(noises, dim=0)
            sigmas = sample_sigmas(len(clean), generator, scheduler.get("shift", 1.0)).to(clean)
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            values, velocity = noised(clean, noise, sigmas)
            predicted = image_gen.transformer(
                values,
                encoder_hidden_states=_captions(image_gen, scale_states, noises, condition_dropout, generator),
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


def _captions(
    image_gen: ImageGen,
    states: torch.Tensor,
    noises: int,
    condition_dropout: float,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Captions of the transformer [B * noises, n, caption width]; a random share has the empty condition."""
    condition = image_gen.condition(states)
    captions = image_gen.mlp(condition).repeat_interleave(noises, dim=0)
    kept = (torch.rand(len(captions), generator=generator) >= condition_dropout).to(captions.device)
    return torch.where(kept[:, None, None], captions, image_gen.mlp(torch.zeros_like(condition[:1])))
