"""Stage 2b of Ming-Tiny: sizes of the image head, its training, and its place in a repository.

python -m training.tiny.stage_drawing autoencoder  # pictures <-> latents   (these two can
python -m training.tiny.stage_drawing condition    # chat -> condition       run in parallel)
python -m training.tiny.stage_drawing outlines     # the autoencoder again, for thin lines
python -m training.tiny.stage_drawing picture      # condition -> latents   (these two can
python -m training.tiny.stage_drawing decoder      # latents -> clearer lines   run in parallel)
python -m training.tiny.stage_drawing export       # write RUNS/model/image_gen
python -m training.tiny.stage_drawing unpack       # copy THINKER/image_gen into RUNS, to continue from it
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import set_seed

from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen
from ming.components import IMAGE_GEN
from ming.files import saving
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.training.loop import fit

from .picturing import AutoencoderData, AutoencoderTask, ConditionTask, PictureTask, RequestData
from .speech import SpeechPool
from .stage import SEED, frozen_thinker, stage_parser, start_stage

LATENT_CHANNELS = 16
# Optimizer steps, batch size and learning rate.
STAGES = {
    "autoencoder": (3000, 16, 1.5e-3),
    "condition": (1500, 32, 1e-3),
    "outlines": (1500, 16, 1e-3),
    "picture": (4000, 16, 1.2e-3),
    "decoder": (1200, 16, 1e-3),
}
OF_AUTOENCODER = ("autoencoder", "outlines", "decoder")
QUICK = (2, 2)
NUM_MEASURED = 8  # batches of pictures for measuring the scale of the latents
# Modules that each stage trains and saves; what was trained last counts.
PARTS = {
    "autoencoder": ("vae",),
    "outlines": ("vae",),
    "condition": ("query_tokens_dict", "proj_in", "proj_out", "connector"),
    "decoder": ("vae.decoder",),
    "picture": ("transformer", "mlp", "connector", "proj_in", "proj_out"),
}


def tiny_image_gen_config(thinker_size: int) -> ImageGenConfig:
    """About 6 M parameters; images of 96 x 96 pixels or of the same area, latents of an eighth of their sides."""
    stages: dict[str, Any] = {
        "block_types": ["ResBlock"] * 4,
        "block_out_channels": [16, 32, 64, 128],
        "layers_per_block": [1, 1, 2, 2],
    }
    vae: dict[str, Any] = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stages.items()
    }
    vae |= {"encoder_qkv_multiscales": [[]] * 4, "decoder_qkv_multiscales": [[]] * 4}
    vae |= {"latent_channels": LATENT_CHANNELS, "scaling_factor": 1.0}
    heads = {"num_attention_heads": 6, "attention_head_dim": 32, "num_cross_attention_heads": 6}
    sizes = {"cross_attention_head_dim": 32, "cross_attention_dim": 192, "caption_channels": 192, "num_layers": 6}
    return ImageGenConfig(
        hidden_size=thinker_size,
        scales=[4, 8],
        mlp_hidden_size=192,
        connector={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
        },
        transformer={
            "in_channels": LATENT_CHANNELS,
            "out_channels": LATENT_CHANNELS,
            "sample_size": 12,
            "patch_size": 2,
            "interpolation_scale": 1,  # sine positions; the release has none and far larger images
        }
        | heads
        | sizes,
        vae=vae,
        scheduler={"shift": 3.0},  # the layout is decided at high noise
        native_side=96,
        source_ratios=[1.0, 1.0],  # squares are drawn best
        num_inference_steps=20,
        guidance_scale=1.3,
    )


def new_image_gen(thinker_size: int) -> ImageGen:
    """The component with the random weights that every run starts from."""
    set_seed(SEED)
    return ImageGen(tiny_image_gen_config(thinker_size))


def part_of(image_gen: ImageGen, stage: str) -> dict[str, nn.Parameter]:
    """The weights that a stage trains."""
    prefixes = tuple(f"{part}." for part in PARTS[stage])
    return {name: value for name, value in image_gen.named_parameters() if name.startswith(prefixes)}


def restore(image_gen: ImageGen, runs: Path, stages: tuple[str, ...]) -> None:
    """Load the weights of earlier stages that RUNS has.

    Raises:
        ValueError: weights of another architecture.
    """
    for stage in stages:
        if (path := runs / f"{stage}.safetensors").is_file():
            tensors = load_file(path)
            if "scaling_factor" in tensors:
                factor = tensors.pop("scaling_factor").item()
                image_gen.config.vae["scaling_factor"] = factor
                image_gen.vae.register_to_config(scaling_factor=factor)
            if unexpected := image_gen.load_state_dict(tensors, strict=False).unexpected_keys:
                raise ValueError(f"{path.name} does not fit: {unexpected[:4]}")


def train(stage: str, args: argparse.Namespace) -> None:
    """Train a stage, or continue it; write RUNS/STAGE.safetensors."""
    steps, batch_size, learning_rate = STAGES[stage]
    steps, batch_size = QUICK if args.quick else (args.steps or steps, args.batch_size or batch_size)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    size = (processes * steps, batch_size, args.seed)
    if stage in OF_AUTOENCODER:
        image_gen = new_image_gen(1)
        task: nn.Module = AutoencoderTask(image_gen.vae)
        data: torch.utils.data.Dataset = AutoencoderData(*size, fine=stage != "autoencoder")
    else:
        thinker = frozen_thinker(args.thinker)
        image_gen = new_image_gen(thinker.config.llm_config.hidden_size)
        task = (ConditionTask if stage == "condition" else PictureTask)(thinker, image_gen)
        processor = BailingMMProcessor.from_pretrained(args.thinker)
        data = RequestData(processor, SpeechPool(args.speech), image_gen.config, *size)
    # The autoencoder stages have no thinker, so their condition has another width.
    restore(image_gen, args.runs, OF_AUTOENCODER if stage in OF_AUTOENCODER else tuple(STAGES))
    part = part_of(image_gen, stage)
    heads = [value for name, value in task.named_parameters() if name.startswith("heads.")]
    trainer = fit(
        task,
        data,
        args.runs / stage,
        args.learning_rate or learning_rate,
        SEED,
        parameters=[*part.values(), *heads],
        bf16=args.bf16,
    )
    if trainer.is_world_process_zero():
        tensors = {name: value.detach().contiguous() for name, value in part.items()}
        if stage in OF_AUTOENCODER:
            tensors["scaling_factor"] = scaling_factor(image_gen.vae.eval())
        save_file(tensors, args.runs / f"{stage}.safetensors")
        supersede(args.runs, stage, set(tensors))


def supersede(runs: Path, stage: str, names: set[str]) -> None:
    """Remove tensors that a stage has just trained from the files of later ones, which would be restored over them."""
    for later in list(STAGES)[list(STAGES).index(stage) + 1 :]:
        path = runs / f"{later}.safetensors"
        if path.is_file() and names & (tensors := load_file(path)).keys():
            save_file({name: value for name, value in tensors.items() if name not in names}, path)


@torch.no_grad()
def scaling_factor(vae: nn.Module) -> torch.Tensor:
    """One over the standard deviation of the latents of pictures, [1]."""
    data = AutoencoderData(NUM_MEASURED, 16, SEED + 1)
    latents = [vae.encode(data[step]["pixels"], return_dict=False)[0].flatten() for step in range(NUM_MEASURED)]
    return 1 / torch.cat(latents).std()[None]


def export(args: argparse.Namespace) -> None:
    """Write RUNS/model/image_gen with the weights of all stages, in bfloat16."""
    thinker = BailingMMNativeForConditionalGeneration.from_pretrained(args.thinker, dtype=torch.bfloat16)
    image_gen = new_image_gen(thinker.config.llm_config.hidden_size)
    restore(image_gen, args.runs, tuple(STAGES))
    with saving(args.runs / "model") as folder:
        image_gen.to(torch.bfloat16).save_pretrained(folder / IMAGE_GEN)


def unpack(args: argparse.Namespace) -> None:
    """Copy a trained image head into RUNS, as the result of every stage."""
    image_gen = ImageGen.from_pretrained(args.thinker / IMAGE_GEN)
    for stage in STAGES:
        tensors = {name: value.detach().float().contiguous() for name, value in part_of(image_gen, stage).items()}
        if stage in OF_AUTOENCODER:
            tensors["scaling_factor"] = torch.tensor([image_gen.vae.config.scaling_factor])
        save_file(tensors, args.runs / f"{stage}.safetensors")


def main() -> None:
    """Run one stage."""
    args = start_stage(stage_parser("stage_drawing", __doc__, (*STAGES, "export", "unpack")))
    {"export": export, "unpack": unpack}.get(args.action, lambda args: train(args.action, args))(args)


if __name__ == "__main__":
    main()
