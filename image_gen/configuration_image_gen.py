"""Configuration of image generation; the defaults are the released sizes."""

import json
import math
import os
import shutil
from pathlib import Path

from safetensors import safe_open
from transformers.configuration_utils import PreTrainedConfig

FOLDER = "image_gen"
AUTO_MAP = {"AutoConfig": "configuration_image_gen.ImageGenConfig", "AutoModel": "modeling_image_gen.ImageGen"}

RELEASED_CONNECTOR = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}
RELEASED_TRANSFORMER = {
    "in_channels": 32,
    "out_channels": 32,
    "num_layers": 20,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "patch_size": 1,
    "sample_size": 16,
    "norm_eps": 1e-6,
    "qk_norm": "rms_norm_across_heads",
    "interpolation_scale": None,
}
_STAGES = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_MULTISCALES = [[], [], [], [5], [5], [5]]
RELEASED_VAE = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": _STAGES,
    "decoder_block_types": _STAGES,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": _MULTISCALES,
    "decoder_qkv_multiscales": _MULTISCALES,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
# The released scheduler file describes another class, whose `flow_shift` this one does not read: the images were made,
# and the weights are used, without a shift.
RELEASED_SCHEDULER = {"num_train_timesteps": 1000, "shift": 1.0}
MIN_SIDE, MAX_SIDE = 64, 2048  # pixels of a picture that may be asked for
RATIO_SIDE = 512  # of the library's table of native sizes
CONNECTOR_FIELDS = tuple(RELEASED_CONNECTOR)


class ImageGenConfig(PreTrainedConfig):
    """Sizes of image generation.

    Args:
        hidden_size: width of the language model, whose states condition the picture.
        scales: sides of the grids of learnable queries, coarse to fine; the last one conditions the picture.
        mlp_hidden_size: inner width of the projection from condition to transformer.
        connector: sizes of the bidirectional Qwen2 between language model and transformer.
        transformer: arguments of `SanaTransformer2DModel`.
        vae: arguments of `AutoencoderDC`.
        scheduler: arguments of `FlowMatchEulerDiscreteScheduler`.
        native_side: side in pixels of the square picture the transformer was trained at; other shapes have about the
            same area.
        num_inference_steps, guidance_scale: defaults of a call.

    What is left out of a dictionary keeps its released value.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    model_type = "bailingmm_image_gen"

    hidden_size: int = 2048
    scales: list | None = None
    mlp_hidden_size: int = 2048
    connector: dict | None = None
    transformer: dict | None = None
    vae: dict | None = None
    scheduler: dict | None = None
    native_side: int = 512
    num_inference_steps: int = 30
    guidance_scale: float = 3.5

    def __post_init__(self, **kwargs):
        self.scales = list(self.scales or (4, 8, 16))
        self.connector = RELEASED_CONNECTOR | (self.connector or {})
        self.transformer = RELEASED_TRANSFORMER | (self.transformer or {})
        self.vae = RELEASED_VAE | (self.vae or {})
        self.scheduler = RELEASED_SCHEDULER | (self.scheduler or {})
        latents = (self.vae["latent_channels"], self.transformer["in_channels"], self.transformer["out_channels"])
        if len(set(latents)) > 1:
            raise ValueError(
                "vae.latent_channels, transformer.in_channels and transformer.out_channels must be equal, got "
                + ", ".join(map(str, latents))
            )
        if self.native_side % self.size_multiple:
            raise ValueError(f"native_side must be a multiple of {self.size_multiple}, got {self.native_side}")
        super().__post_init__(**kwargs)

    @property
    def size_multiple(self) -> int:
        """Native sides are multiples of this many pixels: a latent, or 32 as the library's pipeline demands."""
        return math.lcm(32, 2 ** (len(self.vae["encoder_block_out_channels"]) - 1))

    @property
    def num_queries(self) -> int:
        """Query tokens of all scales."""
        return sum(side * side for side in self.scales)

    @property
    def native_sizes(self) -> dict[str, tuple[int, int]]:
        """Ratio of height and width -> (height, width) in pixels: the library's 512 table, scaled to `native_side`."""
        # The library keeps its table beside a pipeline that takes seconds to import.
        from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN

        step = self.size_multiple

        def scaled(side: float) -> int:
            return max(step, round(side * self.native_side / RATIO_SIDE / step) * step)

        return {ratio: (scaled(height), scaled(width)) for ratio, (height, width) in ASPECT_RATIO_512_BIN.items()}

    def native_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture of the wanted shape is made at: the nearest ratio of the table.

        Raises:
            ValueError: a side outside 64 to 2048 pixels.
        """
        for name, side in (("height", height), ("width", width)):
            if not isinstance(side, int) or not MIN_SIDE <= side <= MAX_SIDE:
                raise ValueError(f"{name}={side!r}: pictures have whole sides of {MIN_SIDE} to {MAX_SIDE} pixels")
        return min(self.native_sizes.items(), key=lambda item: abs(float(item[0]) - height / width))[1]

    @classmethod
    def from_released(cls, directory: str | os.PathLike) -> "ImageGenConfig":
        """From the configs of the released folders `connector/`, `transformer/`, `vae/`, and the tensors of `mlp/`.

        Raises:
            FileNotFoundError: a config is missing.
        """
        files = {name: Path(directory) / name / "config.json" for name in ("connector", "transformer", "vae")}
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
        sections = {
            name: {key: value for key, value in section.items() if not key.startswith("_")}
            for name, section in found.items()
        }
        sections["connector"] = {key: sections["connector"][key] for key in CONNECTOR_FIELDS}
        with safe_open(Path(directory) / "mlp" / "model.safetensors", "pt") as file:
            mlp_hidden_size, hidden_size = file.get_slice("mlp.fc1.weight").get_shape()
            grids = [name.split(".")[-1] for name in list(file.keys()) if name.startswith("query_tokens_dict.")]
        scales = sorted(int(grid.split("x")[0]) for grid in grids)
        return cls(hidden_size=hidden_size, mlp_hidden_size=mlp_hidden_size, scales=scales, **sections)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save `config.json` and the component's code, so that the directory loads with `trust_remote_code=True`.

        The code is copied here because a model takes the time stamps of the directory, saves its config, and then
        uploads what is newer.
        """
        super().save_pretrained(save_directory, **kwargs)
        source, destination = Path(__file__).resolve().parent, Path(save_directory)
        if source != destination.resolve():
            for path in source.glob("*.py"):
                shutil.copyfile(path, destination / path.name)

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True):
        """As the library's, with an auto_map that names this folder when the file lies in one of its name.

        A component is loaded by `subfolder=`, which looks code up from the root of the repository; the library
        would write names without the folder.
        """
        prefix = f"{FOLDER}/" if Path(json_file_path).resolve().parent.name == FOLDER else ""
        self.auto_map = {auto_class: prefix + reference for auto_class, reference in AUTO_MAP.items()}
        super().to_json_file(json_file_path, use_diff=use_diff)


__all__ = ["ImageGenConfig"]
