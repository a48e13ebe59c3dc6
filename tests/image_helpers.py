"""A small random image head for tests, and a copy of Ming-Tiny that has it."""

from pathlib import Path

import torch

from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
STEPS = 2


def small_config(hidden_size: int) -> ImageGenConfig:
    """Scales 2 and 3, native images of 64 x 64 pixels, latents of a 32nd of that."""
    stages = {"block_types": ["ResBlock"] * 6, "block_out_channels": [4] * 6, "layers_per_block": [1] * 6}
    vae = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stages.items()}
    vae |= {"encoder_qkv_multiscales": [[]] * 6, "decoder_qkv_multiscales": [[]] * 6, "latent_channels": 4}
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    sizes = {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 24, "num_layers": 1}
    return ImageGenConfig(
        hidden_size=hidden_size,
        scales=[2, 3],
        mlp_hidden_size=16,
        connector={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        transformer={"in_channels": 4, "out_channels": 4, "sample_size": 2, **heads, **sizes},
        vae=vae,
        native_side=64,
        num_inference_steps=STEPS,
    )


def small_image_gen(hidden_size: int = 192) -> ImageGen:
    torch.manual_seed(3)
    return ImageGen(small_config(hidden_size)).eval()


def build_drawing_repository(directory: Path) -> Path:
    """Ming-Tiny with the component, written into a directory that `from_pretrained` reads."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32)
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (directory / file).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    small_image_gen(model.config.llm_config.hidden_size).save_pretrained(directory / "image_gen")
    return directory
