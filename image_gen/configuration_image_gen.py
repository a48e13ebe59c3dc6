"""Configuration of the image head; the defaults are the released sizes."""

import math
import os
import shutil
from dataclasses import field
from numbers import Integral
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

FOLDER = "image_gen"
AUTO_MAP = {"AutoConfig": "configuration_image_gen.ImageGenConfig", "AutoModel": "modeling_image_gen.ImageGen"}

RELEASED_CONNECTOR: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}
RELEASED_TRANSFORMER: dict[str, Any] = {
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
_MULTISCALES: list[list[int]] = [[], [], [], [5], [5], [5]]
RELEASED_VAE: dict[str, Any] = {
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
# v1.0 samples without a shift: its code reads its scheduler file with a class that ignores the `flow_shift` there.
RELEASED_SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 1.0}
MIN_SIDE, MAX_SIDE = 64, 2048  # pixels of an image that may be asked for
SAME_PROPORTIONS = 0.03
RATIO_SIDE = 512  # of the library's table of native sizes


class ImageGenConfig(PreTrainedConfig):
    """Sizes of the image head.

    Args:
        hidden_size: width of the language model, whose states condition the image.
        scales: sides of the grids of learnable queries, coarse to fine; the last one conditions the image.
        mlp_hidden_size: inner width of the projection from condition to transformer.
        connector: sizes of the bidirectional Qwen2 between language model and transformer.
        transformer: arguments of `SanaTransformer2DModel`.
        vae: arguments of `AutoencoderDC`.
        scheduler: arguments of `FlowMatchEulerDiscreteScheduler`.
        native_side: side in pixels of the square images that the transformer was trained on; other shapes have about
            the same area.
        source_ratios: lowest and highest ratio of height and width at which an image that keeps the proportions of
            another one is made; beyond them it is stretched. None: that of the nearest native size.
        num_inference_steps, guidance_scale: defaults of `ImageGen.draw`.

    A setting that is left out of a dictionary keeps its released value.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    model_type = "bailingmm_image_gen"

    hidden_size: int = 2048
    scales: list = field(default_factory=lambda: [4, 8, 16])
    mlp_hidden_size: int = 2048
    connector: dict = field(default_factory=dict)
    transformer: dict = field(default_factory=dict)
    vae: dict = field(default_factory=dict)
    scheduler: dict = field(default_factory=dict)
    native_side: int = 512
    source_ratios: list[float] | None = None
    num_inference_steps: int = 30
    guidance_scale: float = 3.5

    def __post_init__(self, **kwargs):
        self.connector = RELEASED_CONNECTOR | self.connector
        self.transformer = RELEASED_TRANSFORMER | self.transformer
        self.vae = RELEASED_VAE | self.vae
        self.scheduler = RELEASED_SCHEDULER | self.scheduler
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
        """Native sides are multiples of this many pixels: a latent's side, or 32, which the pipeline needs."""
        return math.lcm(32, 2 ** (len(self.vae["encoder_block_out_channels"]) - 1))

    @property
    def num_queries(self) -> int:
        """Number of query tokens of all scales."""
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
        """The (height, width) in pixels at which an image of the given size is made: the nearest ratio of the table.

        Raises:
            ValueError: a side outside 64 to 2048 pixels.
        """
        for name, side in (("height", height), ("width", width)):
            if isinstance(side, bool) or not isinstance(side, Integral) or not MIN_SIDE <= side <= MAX_SIDE:
                raise ValueError(f"{name}={side!r}: images have whole sides of {MIN_SIDE} to {MAX_SIDE} pixels")
        return self._nearest(height / width)

    def size_like(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) in pixels of an image with given proportions and about the native area.

        It is a native size where that has the same proportions, within `SAME_PROPORTIONS`.
        """
        native = self._nearest(height / width)
        if abs(native[0] * width / (native[1] * height) - 1) < SAME_PROPORTIONS:
            return native
        scale = max(self.native_side / math.sqrt(height * width), MIN_SIDE / min(height, width))
        return min(round(height * scale), MAX_SIDE), min(round(width * scale), MAX_SIDE)

    def drawn_like(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the same area within `source_ratios`, at which an image of that size is made."""
        low, high = self.source_ratios or (0.0, math.inf)
        if low <= height / width <= high:
            return height, width
        ratio = min(max(height / width, low), high)
        return round(math.sqrt(height * width * ratio)), round(math.sqrt(height * width / ratio))

    def _nearest(self, ratio: float) -> tuple[int, int]:
        """The native size whose entry in the table is nearest to a ratio of height and width."""
        return min(self.native_sizes.items(), key=lambda item: abs(float(item[0]) - ratio))[1]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save `config.json` and the component's code, so that the directory loads with `trust_remote_code=True`.

        The model cannot copy the code itself: its `save_pretrained` saves the configuration and then uploads the files
        that are newer than its start.
        """
        super().save_pretrained(save_directory, **kwargs)
        source, destination = Path(__file__).resolve().parent, Path(save_directory)
        if source != destination.resolve():
            for path in source.glob("*.py"):
                shutil.copyfile(path, destination / path.name)

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True):
        """Write the file as the library does, with an `auto_map` that names the folder `FOLDER` if the file is in it.

        With `subfolder=` the library looks up the code of a component from the root of the repository, but it would
        write names without the folder.
        """
        prefix = f"{FOLDER}/" if Path(json_file_path).resolve().parent.name == FOLDER else ""
        self.auto_map = {auto_class: prefix + reference for auto_class, reference in AUTO_MAP.items()}
        super().to_json_file(json_file_path, use_diff=use_diff)


__all__ = ["ImageGenConfig"]
