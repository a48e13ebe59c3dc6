"""Drawing: how a conversation becomes the condition of a picture, and the model's calls for it.

    prompt, then per scale <image> queries </image> -> decoder -> states of the finest scale -> `image_gen` component

Query tokens reach the decoder as ordinary image features; nothing in it knows about drawing.

Shape letters: B chats, L tokens, Q tokens of all scales with their markers, N query tokens of the finest one, H width.
"""

import inspect
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModel, GenerationConfig, GenerationMixin

from .configuration_bailingmm import has_component
from .modeling_bailing_moe import IMAGE_TYPE
from .quantization import is_quantized, quantization_of_image_gen
from .speech import StreamEvent, row_generators

IMAGE_FOLDER = "image_gen"
GENERATE_ARGUMENTS = set(inspect.signature(GenerationMixin.generate).parameters) - {"kwargs"}
# What the image mode passes on to `draw`.
IMAGE_INPUTS = (
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "num_images_per_prompt",
    "callback",
    "progress",
    "resize",
)
CHECKED = IMAGE_INPUTS[:5]  # what can be told from the numbers alone
RELEASED_INPUTS = {
    "image_gen_height": "height",
    "image_gen_width": "width",
    "image_gen_steps": "num_inference_steps",
    "image_gen_cfg": "guidance_scale",
    "image_gen_seed": "seed",
}


@dataclass(frozen=True)
class ImageProgress:
    """A denoising step is done: step `step` of `num_steps`, and the latents [I, C, h, w] for a preview."""

    step: int
    num_steps: int
    latents: torch.Tensor


@dataclass(frozen=True)
class ImageDone:
    """Finished pictures, and the (height, width) they were made at."""

    images: list[Image.Image]
    native_size: tuple[int, int]


class DrawingMixin:
    """The image mode of `generate` and `stream` for a model with an `image_gen` component beside its weights."""

    @property
    def image_gen(self) -> nn.Module:
        """Condition -> pictures; read from the repository's folder on first use, on the model's device and dtype."""
        if not self.config.load_image_gen:
            raise ValueError(
                "this model was loaded with load_image_gen=False; load it with load_image_gen=True to draw"
            )

        def read(source, revision):
            if not has_component(source, IMAGE_FOLDER, revision):
                raise ValueError(f"{source} has no {IMAGE_FOLDER}/ folder; take a repository that draws")
            options = {"subfolder": IMAGE_FOLDER, "revision": revision or "main", "trust_remote_code": True}
            if is_quantized(self.config):
                config = AutoConfig.from_pretrained(source, **options)
                quantization = quantization_of_image_gen(
                    self.config.quantization_config, partial(AutoModel.from_config, config, trust_remote_code=True)
                )
                options |= {"quantization_config": quantization, "device_map": {"": self.device}}
            return AutoModel.from_pretrained(source, dtype=self.dtype, **options).eval()

        image_gen = self._component("image_gen", read)
        stays = is_quantized(self.config) or image_gen.offload_hook is not None
        return image_gen if stays else image_gen.to(self.device)

    @image_gen.setter
    def image_gen(self, value: nn.Module):
        self.__dict__.setdefault("_components", {})["image_gen"] = value

    def image_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **media,
    ) -> list[torch.Tensor]:
        """What conversations say about the picture to draw: per scale, coarse to fine, states [B, n, H].

        One pass over the prompts, padded on the left, with the query tokens behind them; gradients reach the queries.
        Arguments as of `forward`.
        """
        embeds, token_types = self.embed(input_ids, mm_token_type_ids, **media)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_types = torch.zeros_like(input_ids) if token_types is None else token_types
        queries = self.image_gen.queries()
        query_embeds, query_types = self._query_tokens(queries)
        rows, length = len(input_ids), len(query_types)
        embeds = torch.cat([embeds, query_embeds.to(embeds.dtype).expand(rows, -1, -1)], dim=1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(rows, length)], dim=1)
        states = self.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            mm_token_type_ids=torch.cat([token_types, query_types.expand(rows, -1)], dim=1),
            use_cache=False,
        ).last_hidden_state
        is_query = query_types == IMAGE_TYPE
        return list(states[:, -length:][:, is_query].split([len(scale) for scale in queries], dim=1))

    def _query_tokens(self, queries: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [Q, H] and token types [Q] of the queries of all scales, each between its image markers."""
        start = self.config.image_token_id + 1
        markers = self.get_input_embeddings()(torch.tensor([start, start + 1], device=self.device))
        embeds, token_types = [], []
        for scale in queries:
            embeds += [markers[:1], scale.to(markers.dtype), markers[1:]]
            token_types += [0, *[IMAGE_TYPE] * len(scale), 0]
        return torch.cat(embeds), torch.tensor(token_types, device=self.device)

    def _check_drawing(self, kwargs: dict, drawing: dict) -> dict:
        """Arguments of the image mode -> those of `ImageGen.draw`, checked before any work.

        `kwargs` are those of the library's `generate`; it refuses what neither it nor the model knows.
        """
        others = {name: value for name, value in kwargs.items() if name not in GENERATE_ARGUMENTS}
        self._validate_model_kwargs(GenerationConfig().update(**others))
        rows, length = kwargs["input_ids"].shape
        options = dict(drawing)
        per_prompt = options.get("num_images_per_prompt", 1)
        seed, generator = options.pop("seed", None), options.pop("generator", None)
        config, context = self.image_gen.config, self.config.llm_config.max_position_embeddings
        if (needed := length + config.num_queries + 2 * len(config.scales)) > context:
            raise ValueError(f"prompt and query tokens are {needed}; the model's context is {context}")
        self.image_gen.check_options(**{name: options[name] for name in CHECKED if name in options})
        if isinstance(seed, Integral):  # every chat draws with this seed, its further pictures with the next ones
            seed = [int(seed) + index for _ in range(rows) for index in range(per_prompt)]
        return {**options, "generator": row_generators(seed, generator, rows * per_prompt)}

    @torch.no_grad()
    def _draw(self, kwargs: dict, drawing: dict):
        """The image mode of `generate`."""
        options = self._check_drawing(kwargs, drawing)
        names = ("input_ids", "attention_mask", "mm_token_type_ids", *self.media_inputs)
        states = self.image_states(**{name: kwargs[name] for name in names if name in kwargs})
        return self.image_gen.draw(self.image_gen.condition(states[-1]), **options)

    def _stream_drawing(self, kwargs: dict, drawing: dict) -> Iterator[StreamEvent]:
        """The image mode of `stream`: a thread draws, this one hands on its progress; closing stops it."""
        events: queue.SimpleQueue = queue.SimpleQueue()
        cancelled, callback = threading.Event(), drawing.get("callback")

        def after_step(step: int, num_steps: int, latents: torch.Tensor) -> bool:
            events.put(ImageProgress(step, num_steps, latents))
            wanted = callback is None or callback(step, num_steps, latents) is not False
            return wanted and not cancelled.is_set()

        def work() -> None:
            try:
                drawn = self._draw(kwargs, {**drawing, "callback": after_step})
                events.put(ImageDone(drawn.images, drawn.native_size))
            except BaseException as error:  # handed to the reader, who raises it
                events.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            event = None
            while not isinstance(event, ImageDone):
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            cancelled.set()
            thread.join()


__all__ = ["DrawingMixin", "ImageDone", "ImageProgress"]
