"""Drawing by `ImageGen.draw` against the library's `SanaPipeline` with the same transformer, VAE and schedule.

The pipeline gets embeddings in place of its text encoder's output; ours gets the condition of the language model and
adds the projection of it, once before the loop. `one by one` draws the images of a batch one after another.
"""

from functools import partial
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import nn

from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen

from .report import REFERENCE, Case, Versus, versus, versus_plot, versus_table

STEPS = 4
BATCHES = (1, 4)
REPEATS = 3


def small_sizes() -> dict:
    """Half the released width, 2 of 20 layers, images of 256 pixels a side; arguments of `ImageGenConfig`."""
    stages: dict[str, list] = {"block_types": ["ResBlock"] * 6, "layers_per_block": [1] * 6}
    vae: dict[str, Any] = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stages.items()
    }
    vae |= {f"{side}_block_out_channels": [8, 16, 32, 64, 64, 128] for side in ("encoder", "decoder")}
    vae |= {"encoder_qkv_multiscales": [[]] * 6, "decoder_qkv_multiscales": [[]] * 6, "latent_channels": 32}
    transformer = {"in_channels": 32, "out_channels": 32, "sample_size": 8, "num_layers": 2, "caption_channels": 1152}
    transformer |= {"num_attention_heads": 35, "attention_head_dim": 32}
    transformer |= {"num_cross_attention_heads": 10, "cross_attention_head_dim": 112, "cross_attention_dim": 1120}
    connector = {"hidden_size": 448, "intermediate_size": 896, "num_hidden_layers": 2}
    connector |= {"num_attention_heads": 7, "num_key_value_heads": 1}
    sizes = {"hidden_size": 1024, "scales": [4, 8], "mlp_hidden_size": 1152, "native_side": 256}
    return {**sizes, "connector": connector, "transformer": transformer, "vae": vae}


class Library:
    """The pipeline as a user with embeddings calls it."""

    def __init__(self, image_gen: ImageGen):
        scheduler = FlowMatchEulerDiscreteScheduler(**image_gen.config.scheduler)
        self.pipeline = SanaPipeline(None, None, image_gen.vae, image_gen.transformer, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        self.side, self.scale = image_gen.config.native_side, image_gen.config.guidance_scale

    def __call__(self, captions: torch.Tensor, generators: list[torch.Generator]):
        mask = torch.ones(captions.shape[:2], device=captions.device)
        return self.pipeline(
            negative_prompt=None,
            prompt_embeds=captions,
            prompt_attention_mask=mask,
            negative_prompt_embeds=torch.zeros_like(captions),
            negative_prompt_attention_mask=mask,
            num_inference_steps=STEPS,
            guidance_scale=self.scale,
            height=self.side,
            width=self.side,
            generator=generators,
            use_resolution_binning=False,
        )


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32, **sizes) -> list[Versus]:
    """Time both on batches of several sizes; `sizes` replace those of `small_sizes`."""
    torch.manual_seed(0)
    image_gen = ImageGen(ImageGenConfig(**{**small_sizes(), **sizes})).to(device, dtype).eval()
    library = Library(image_gen)
    cases: list[Case] = []
    for batch in BATCHES:
        condition = torch.randn(batch, image_gen.config.scales[-1] ** 2, image_gen.config.hidden_size)
        condition = nn.functional.normalize(condition, dim=-1).to(device, dtype)
        captions = image_gen.mlp(condition).detach()
        generators = [torch.Generator().manual_seed(row) for row in range(batch)]
        ours = partial(image_gen.draw, num_inference_steps=STEPS)
        name = "1 image" if batch == 1 else f"{batch} images"
        cases.append((name, REFERENCE, partial(library, captions, generators)))
        cases.append((name, "ours", partial(ours, condition, generator=generators)))
        if batch > 1:
            cases.append((name, "ours, one by one", partial(_one_by_one, ours, condition, generators)))
    return versus(cases, REPEATS)


def _one_by_one(draw, condition: torch.Tensor, generators: list[torch.Generator]) -> None:
    for row, generator in zip(condition, generators, strict=True):
        draw(row[None], generator=[generator])


table, plot = versus_table, versus_plot
