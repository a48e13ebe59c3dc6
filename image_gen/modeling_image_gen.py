"""Images from the states of a language model (Ming-Lite-Uni, arXiv 2505.02471, sections 2 and 3).

    queries -> language model -> states of the finest scale -> connector -> condition -> Sana -> DC-AE -> image

    image_gen = AutoModel.from_pretrained(repository, subfolder="image_gen", trust_remote_code=True)
    image_gen.draw(image_gen.condition(states)).images[0].save("drawing.png")

Transformer, autoencoder, schedule and sampling loop are those of diffusers. State-dict names are the released ones
below the names of the released folders (those of `mlp/` have no prefix).

Shape letters: B conditions, I images, N query tokens of the finest scale, H width of the language model, C channels.
"""

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import cpu_offload_with_hook
from accelerate.utils import align_module_device
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from diffusers.image_processor import PixArtImageProcessor
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed
from PIL import Image
from torch import nn
from transformers import CompileConfig, PreTrainedModel, Qwen2Config, Qwen2Model
from transformers import initialization as init

from .compiled_transformer import TransformerGraphs, raise_if_not_compilable
from .configuration_image_gen import ImageGenConfig

NAMES_SHOWN = 8
# More is a mistake: every step of the schedule, and every image, takes memory before the first one is made.
MOST = {"num_inference_steps": 10_000, "num_images_per_prompt": 1_000}
# Called after every denoising step with (step, number of steps, latents [I, C, h, w]); it cancels by returning False.
StepCallback = Callable[[int, int, torch.Tensor], bool | None]


class ConditionProjection(nn.Module):
    """Condition [..., H] -> caption embeddings of the transformer [..., C]."""

    def __init__(self, config: ImageGenConfig):
        super().__init__()
        channels = config.transformer["caption_channels"]
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_hidden_size)
        self.layer_norm1 = nn.LayerNorm(config.mlp_hidden_size)
        self.fc2 = nn.Linear(config.mlp_hidden_size, channels)
        self.layer_norm2 = nn.LayerNorm(channels)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        return self.layer_norm2(self.fc2(F.relu(self.layer_norm1(self.fc1(condition)))))


@dataclass
class Drawing:
    """Images, in the order of the conditions (all images of the first condition first).

    Args:
        images: RGB.
        native_size: (height, width) in pixels at which they were made; they are resized if another size was asked for.
            None where a call of the whole model made them at several.
    """

    images: list[Image.Image]
    native_size: tuple[int, int] | None


class ImageGen(PreTrainedModel):
    """The image head: `queries` go into a language model, `condition` takes its states, `draw` makes the images."""

    config: ImageGenConfig
    config_class = ImageGenConfig
    base_model_prefix = ""
    main_input_name = "states"
    _no_split_modules = ["Qwen2DecoderLayer", "SanaTransformerBlock", "ResBlock", "EfficientViTBlock"]
    _supports_sdpa = True

    def __init__(self, config: ImageGenConfig):
        super().__init__(config)
        width = config.connector["hidden_size"]
        self.query_tokens_dict = nn.ParameterDict(
            {f"{side}x{side}": nn.Parameter(torch.zeros(side * side, config.hidden_size)) for side in config.scales}
        )
        self.proj_in = nn.Linear(config.hidden_size, width)
        self.proj_out = nn.Linear(width, config.hidden_size)
        self.mlp = ConditionProjection(config)
        self.connector = Qwen2Model(Qwen2Config(**config.connector, vocab_size=1, attn_implementation="sdpa"))
        self.connector.embed_tokens = nn.Identity()  # it gets embeddings; the released table has 311 M weights
        self.transformer = SanaTransformer2DModel.from_config(config.transformer)
        self.vae = AutoencoderDC.from_config(config.vae)
        self.graphs = TransformerGraphs()
        self.offload_hook: Any = None  # of the part that `enable_model_cpu_offload` moves last
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            for queries in self.query_tokens_dict.values():
                init.normal_(queries)
                init.copy_(queries, F.normalize(queries, dim=-1))
        elif isinstance(module, PatchEmbed) and module.pos_embed is not None:  # computed, not stored
            size, grid = module.pos_embed.shape[-1], (module.height, module.width)
            scales = {"base_size": module.base_size, "interpolation_scale": module.interpolation_scale}
            init.copy_(module.pos_embed, get_2d_sincos_pos_embed(size, grid, output_type="pt", **scales)[None])

    @property
    def device(self) -> torch.device:
        """Where inputs belong, also when the weights are offloaded."""
        with align_module_device(self.proj_in):  # offloaded weights are fetched to where it computes
            return self.proj_in.weight.device

    def queries(self) -> list[torch.Tensor]:
        """The learnable query tokens [side * side, H] of every scale, coarse to fine."""
        with align_module_device(self.query_tokens_dict):
            return [self.query_tokens_dict[f"{side}x{side}"] for side in self.config.scales]

    def condition(self, states: torch.Tensor) -> torch.Tensor:
        """Last hidden states of a language model at the query tokens of a scale [B, N, H] -> condition [B, N, H].

        The connector sees all of them at once; the condition has unit length per token.
        """
        raise_if_no_floats("states", states, "[B, N, H]", 3, self.config.hidden_size)
        embeds = self.proj_in(states.to(self.proj_in.weight.dtype))
        size = embeds.shape[1]
        sees_all = embeds.new_zeros(len(embeds), 1, size, size)
        hidden = self.connector(
            inputs_embeds=embeds, attention_mask={"full_attention": sees_all}, use_cache=False
        ).last_hidden_state
        return F.normalize(self.proj_out(hidden).float(), dim=-1).to(hidden.dtype)

    def enable_model_cpu_offload(self, device: torch.device | str) -> None:
        """Let connector, transformer and autoencoder take turns on `device`; the others wait on the CPU.

        At any time the device holds one of them, and the queries and projections, which are small.
        """
        self.to("cpu")
        for part in (self.query_tokens_dict, self.proj_in, self.proj_out, self.mlp):
            part.to(device)
        for part in (self.connector, self.transformer, self.vae):
            _, self.offload_hook = cpu_offload_with_hook(part, device, prev_module_hook=self.offload_hook)

    @torch.no_grad()
    def draw(
        self,
        condition: torch.Tensor,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: StepCallback | None = None,
        progress: bool = False,
        resize: bool = True,
        compile: bool | CompileConfig = False,
    ) -> Drawing:
        """Images of conditions.

        Args:
            condition: [B, N, H], see `condition`.
            height, width: in pixels, 64 to 2048; default the native square. The image is made at the nearest native
                size. Unless `resize` is False it is then resized to cover the size asked for, and cropped to it.
            num_inference_steps: steps of the flow.
            guidance_scale: scale s >= 1 of classifier-free guidance in the form u + s * (c - u); 1 is none.
            num_images_per_prompt: images per condition; default 1.
            generator: one per image, I = B * num_images_per_prompt, or the only one; None: a fresh draw. Generators on
                the CPU give the same noise on every device. PyTorch's global generator is never used.
            callback: see `StepCallback`.
            progress: show a progress bar.
            compile: whether the transformer is compiled, into one graph for each native size and number of images; a
                `CompileConfig` says how. The first call of a size waits for the compiler.

        Raises:
            ValueError: sizes, steps, guidance or generators that cannot be used, before any work; or `compile` with
                a head that does not compile.
            TypeError: an argument of another kind than its name says.
            concurrent.futures.CancelledError: the callback cancelled.
        """
        options = self.resolve_options(height, width, num_inference_steps, guidance_scale, num_images_per_prompt)
        size, native, num_steps, scale = options
        self.raise_if_not_compilable(compile)
        raise_if_no_floats("condition", condition, "[B, N, H]", 3, self.config.hidden_size)
        raise_if_no_objects(generator, callback)
        raise_if_no_flags(progress=progress, resize=resize)
        num_images_per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        count = len(condition) * num_images_per_prompt
        if isinstance(generator, torch.Generator):
            generator = [generator]
        if generator is not None and len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} images; pass one per image")
        if generator is None:
            generator = [torch.Generator() for _ in range(count)]
            for own in generator:
                own.seed()
        condition = condition.repeat_interleave(num_images_per_prompt, dim=0)
        transformer = self.graphs.of(self.transformer, compile, self.device) if compile else self.transformer
        latents = self._denoise(transformer, condition, native, num_steps, scale, generator, callback, progress)
        return Drawing(self.decode(latents, size if resize or resize is None else native), native)

    def resolve_options(
        self,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = None,
    ) -> tuple[tuple[int, int], tuple[int, int], int, float]:
        """Options of `draw`, defaults filled in -> size asked for, native size, number of steps, guidance scale.

        Sizes are (height, width) in pixels.

        Raises:
            ValueError: sizes, steps, guidance or a number of images that cannot be used.
        """
        config = self.config
        size = (config.native_side if height is None else height, config.native_side if width is None else width)
        native = config.native_size(*size)
        num_images_per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        num_steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        for name, value in (("num_inference_steps", num_steps), ("num_images_per_prompt", num_images_per_prompt)):
            if isinstance(value, bool) or not isinstance(value, Integral) or not value >= 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {str(value)[:80]}")
            if value > MOST[name]:
                raise ValueError(f"{name} must be at most {MOST[name]:,}, got {str(value)[:80]}")
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 1 <= scale < float("inf"):
            raise ValueError(f"guidance_scale must be at least 1 (no guidance), got {str(scale)[:80]}")
        return (int(size[0]), int(size[1])), native, int(num_steps), scale

    def raise_if_not_compilable(self, compile: bool | CompileConfig) -> None:
        """Refuse what `compile=` of `draw` cannot be, before any work.

        Raises:
            TypeError: neither a flag nor a `CompileConfig`.
            ValueError: it is asked for, and this head does not compile.
        """
        if not isinstance(compile, bool | CompileConfig | None):
            raise TypeError(f"compile={compile!r:.80} must be True, False or a CompileConfig of transformers")
        if compile:
            raise_if_not_compilable(self.transformer)

    def _denoise(
        self,
        transformer: Any,
        condition: torch.Tensor,
        native: tuple[int, int],
        num_steps: int,
        scale: float,
        generator: list[torch.Generator],
        callback: StepCallback | None,
        progress: bool,
    ) -> torch.Tensor:
        """The library's sampling loop: condition [I, N, H], arguments as of `draw` -> latents [I, C, h, w] float32.

        The latents are scaled by `vae.scaling_factor`. The transformer is the head's own, or a compiled one.
        """
        from diffusers import SanaPipeline

        scheduler = FlowMatchEulerDiscreteScheduler(**self.config.scheduler)
        captions, nothing = self.mlp(condition), self.mlp(torch.zeros_like(condition))

        class Pipeline(SanaPipeline):
            # The library's own asks the weights, which are on the device "meta" when they are offloaded.
            _execution_device = captions.device

        pipeline = Pipeline(None, None, self.vae, transformer, scheduler)
        pipeline.set_progress_bar_config(disable=not progress)
        mask = torch.ones(captions.shape[:2], device=captions.device)

        def after_step(pipeline, step, timestep, tensors):
            if callback is not None and callback(step, num_steps, tensors["latents"]) is False:
                raise CancelledError(f"cancelled after step {step + 1} of {num_steps}")
            return tensors

        return pipeline(
            negative_prompt=None,
            prompt_embeds=captions,
            prompt_attention_mask=mask,
            negative_prompt_embeds=nothing,
            negative_prompt_attention_mask=mask,
            num_inference_steps=num_steps,
            guidance_scale=scale,
            height=native[0],
            width=native[1],
            generator=generator,
            use_resolution_binning=False,
            output_type="latent",
            callback_on_step_end=after_step,
        ).images

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """Latents [I, C, h, w], those of a callback too -> RGB images, resized and cropped to `size` if given.

        Afterwards the autoencoder is moved to the CPU if `enable_model_cpu_offload` was called.

        Args:
            size: (height, width) in pixels.

        Raises:
            FloatingPointError: NaN or infinite values, in the latents or on the way to the image.
        """
        raise_if_no_floats("latents", latents, "[I, C, h, w]", 4, self.config.vae["latent_channels"], axis=1)
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels = self.vae.decode(scaled, return_dict=False)[0]
        if not torch.isfinite(pixels).all():
            raise FloatingPointError(f"the image is not finite (NaN or infinite values) in {pixels.dtype}")
        if self.offload_hook is not None:
            self.offload_hook.offload()
        processor = PixArtImageProcessor(vae_scale_factor=self.config.size_multiple)
        if size is not None:
            pixels = processor.resize_and_crop_tensor(pixels, size[1], size[0])
        return processor.postprocess(pixels, output_type="pil")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """Library `from_pretrained` that refuses incomplete checkpoints instead of leaving layers random.

        Raises:
            ValueError: names missing from the checkpoint, unknown to the model, or of another shape (unless
                `ignore_mismatched_sizes`).
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        raise_if_incomplete(pretrained_model_name_or_path, info, ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model


def raise_if_no_floats(name: str, value: Any, shape: str, dims: int, width: int, axis: int = -1) -> None:
    """Refuse what is no tensor of floats with so many dimensions, and of this width along one of them.

    Raises:
        TypeError: no tensor of floats.
        ValueError: another shape, or nothing in it.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}={type(value).__name__} must be a tensor {shape} of floats")
    if value.ndim != dims or not value.numel() or value.shape[axis] != width:
        raise ValueError(f"{name} of shape {tuple(value.shape)} must be {shape}, {width} wide, with at least one row")


def raise_if_no_objects(generator: Any, callback: Any) -> None:
    """Raise a TypeError for what is neither a generator nor several, and for a callback that cannot be called."""
    generators = generator if isinstance(generator, (list, tuple)) else (generator,)
    if generator is not None and not all(isinstance(each, torch.Generator) for each in generators):
        raise TypeError(f"generator={generator!r:.80} must be a torch.Generator, or a list of one per image")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={callback!r:.80} must be a function of (step, number of steps, latents)")


def raise_if_no_flags(**flags: Any) -> None:
    """Raise a TypeError for what is neither True nor False, nor None, which stands for left out."""
    for name, value in flags.items():
        if not isinstance(value, bool | None) and not (type(value) is int and value in (0, 1)):
            raise TypeError(f"{name}={value!r:.80} must be True or False")


# The other component has a copy: each is a folder that loads alone and imports nothing outside of it.
def raise_if_incomplete(source: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
    """Raise a ValueError that names what does not fit between a checkpoint and the model, if anything.

    `info` is the library's loading info: `missing_keys`, `unexpected_keys`, and `mismatched_keys` as (name, shape in
    the checkpoint, shape in the model).
    """
    shapes = [f"{name} {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    problems = {
        "missing keys": info["missing_keys"],
        "unexpected keys": info["unexpected_keys"],
        "wrong shapes": [] if ignore_mismatched_sizes else shapes,
    }
    for problem, found in problems.items():
        if names := sorted(found):
            more = f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
            raise ValueError(
                f"{source}: {problem}: {', '.join(names[:NAMES_SHOWN])}{more}. "
                "The checkpoint and its config.json do not belong together."
            )


__all__ = ["Drawing", "ImageGen"]
