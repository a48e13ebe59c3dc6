"""Drawing: how a conversation becomes the condition of an image.

    prompt, then per scale <image> queries </image> -> decoder -> states of the finest scale -> image head

Query tokens reach the decoder as ordinary image features; nothing in it knows about drawing.

Shape letters: B chats, L tokens, Q tokens of all scales with their markers, n query tokens of a scale, H width.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .background import BackgroundWork
from .compiled import step_config
from .components import IMAGE_GEN
from .events import ImageDone, ImageProgress
from .finite import naming_layers, raise_if_not_finite
from .generation_arguments import raise_if_no_room_to_draw
from .randomness import plain_seed, raise_if_unusable, row_generators
from .token_types import IMAGE_TYPE, TEXT_TYPE

if TYPE_CHECKING:
    from .modeling_bailingmm import BailingMMNativeForConditionalGeneration

logger = logging.getLogger(__name__)

# What of the processor's output the prompt of an image consists of, beside the media.
PROMPT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")
# Options of `ImageGen.draw` whose values can be judged by themselves.
VALUES = ("height", "width", "num_inference_steps", "guidance_scale", "num_images_per_prompt")
EMPTY_RANGE = 20  # grey levels: the noise of an image without content stays within them


class Painter:
    """Draws images with the image head of a model.

    Args:
        model: has `components`, `embed` and a decoder.
    """

    def __init__(self, model: "BailingMMNativeForConditionalGeneration"):
        self.model = model

    def resolve(
        self,
        inputs: dict[str, Any],
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Options of a call as arguments of `draw`, before any work; reads the image head.

        Args:
            inputs: what is given to the library's `generate`.
            seed: one draws the first image of every chat, the numbers after it its further ones.
            generator: see `row_generators`.

        Raises:
            TypeError: an option of another kind than its name says.
            ValueError: an option that cannot be used, or a
                prompt that does not fit into the context with the query tokens.
        """
        self.raise_if_unfit(inputs, seed, generator, **options)
        options = {name: value for name, value in options.items() if value is not None}
        rows, per_prompt = len(inputs["input_ids"]), options.get("num_images_per_prompt", 1)
        options["compile"] = step_config(self.model.device, options.get("compile")) or False
        if "height" not in options and "width" not in options:
            options["sizes"] = self._sizes_like_sources(inputs)
        options["generator"] = row_generators(_numbered(seed, rows, per_prompt), generator, rows * per_prompt)
        return options

    def raise_if_unfit(
        self,
        inputs: dict[str, Any],
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **options: Any,
    ) -> None:
        """Refuse what `resolve` cannot take; draws nothing from a generator."""
        image_gen = self.model.components.image_gen.load()
        rows, length = inputs["input_ids"].shape
        raise_if_no_room_to_draw(length, image_gen.config, self.model.config.llm_config.max_position_embeddings)
        options = {name: value for name, value in options.items() if value is not None}
        image_gen.resolve_options(**{name: options[name] for name in VALUES if name in options})
        per_prompt = options.get("num_images_per_prompt", 1)
        raise_if_unusable(seed, generator)
        raise_if_unusable(_numbered(seed, rows, per_prompt), generator, rows * per_prompt)
        image_gen.raise_if_not_compilable(step_config(self.model.device, options.get("compile")) or False)
        if "height" not in options and "width" not in options:
            self._sizes_like_sources(inputs)

    def _sizes_like_sources(self, inputs: dict[str, Any]) -> list[tuple[int, int] | None]:
        """Per chat (height, width) in the proportions of its last image; None without an image.

        Raises:
            ValueError: as many `image_sizes` as the prompts have images are needed.
        """
        ids, sources = inputs["input_ids"], inputs.get("image_sizes")
        counts = (ids == self.model.config.image_token_id + 1).sum(dim=1).tolist()
        if sources is None:
            return [None] * len(ids)
        if sum(counts) != len(sources):
            raise ValueError(f"image_sizes {tuple(sources.shape)} for {sum(counts)} images in the prompts")
        config, last = self.model.components.image_gen.load().config, -1
        sizes: list[tuple[int, int] | None] = []
        for count in counts:
            last += count
            sizes.append(config.size_like(*sources[last].tolist()) if count else None)
        return sizes

    def states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **media: Any,
    ) -> list[torch.Tensor]:
        """What conversations say about the image to draw: per scale, coarse to fine, states [B, n, H].

        One pass over the prompts, padded on the left, with the query tokens behind them; gradients reach the queries.
        Arguments as of the model's `forward`.
        """
        embeds, token_types = self.model.embed(input_ids, mm_token_type_ids, **media)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        token_types = torch.zeros_like(input_ids) if token_types is None else token_types
        queries = self.model.components.image_gen.load().queries()
        query_embeds, query_types = self._query_tokens(queries)
        rows, length = len(input_ids), len(query_types)
        embeds = torch.cat([embeds, query_embeds.to(embeds.dtype).expand(rows, -1, -1)], dim=1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(rows, length)], dim=1)
        states = self.model.get_decoder()(
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
        start, device = self.model.config.image_token_id + 1, self.model.device
        markers = self.model.get_input_embeddings()(torch.tensor([start, start + 1], device=device))
        embeds, token_types = [], []
        for scale in queries:
            embeds += [markers[:1], scale.to(markers.dtype), markers[1:]]
            token_types += [TEXT_TYPE, *[IMAGE_TYPE] * len(scale), TEXT_TYPE]
        return torch.cat(embeds), torch.tensor(token_types, device=device)

    @torch.no_grad()
    def draw(self, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        """Draw what chats ask for.

        Args:
            inputs: the processor's output; options: see `resolve`.
        Returns:
            the `Drawing` of the image head; its native size is None where chats were drawn at different ones.
        """
        image_gen = self.model.components.image_gen.load()

        def draw_again() -> None:
            native = {name: options[name] for name in ("num_inference_steps", "guidance_scale") if name in options}
            image_gen.draw(self._condition(inputs), **native)

        with naming_layers({"": self.model, IMAGE_GEN: image_gen}, draw_again):
            condition = self._condition(inputs)
            raise_if_not_finite("the condition of the image is", condition)  # before all the steps of drawing
            drawing = self._draw_condition(condition, dict(options))
        _warn_of_empty_images(drawing.images)
        return drawing

    def _condition(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The condition [B, n, H] of the image head, from the processor's output."""
        names = (*PROMPT_INPUTS, *self.model.media_inputs)
        states = self.states(**{name: inputs[name] for name in names if name in inputs})
        return self.model.components.image_gen.load().condition(states[-1])

    def _draw_condition(self, condition: torch.Tensor, options: dict[str, Any]) -> Any:
        sizes = options.pop("sizes", [None])
        if not any(sizes):
            return self.model.components.image_gen.load().draw(condition, **options)
        return self._draw_like_sources(condition, sizes, options)

    def _draw_like_sources(
        self, condition: torch.Tensor, sizes: list[tuple[int, int] | None], options: dict[str, Any]
    ) -> Any:
        """Draw every chat at the native size nearest to its own (height, width), and stretch the image to it.

        Unlike a size that the caller names, nothing is cropped: a change must not lose what stands at the border.
        """
        image_gen, count = self.model.components.image_gen.load(), options.get("num_images_per_prompt", 1)
        images: dict[int, Image.Image] = {}
        drawings = []
        for size in dict.fromkeys(sizes):
            rows = [row for row, wanted in enumerate(sizes) if wanted == size]
            places = [row * count + number for row in rows for number in range(count)]
            drawn_at = (None, None) if size is None else image_gen.config.drawn_like(*size)
            asked = dict(zip(("height", "width"), drawn_at, strict=True))
            generators = [options["generator"][place] for place in places]
            drawn = image_gen.draw(condition[rows], **{**options, **asked, "generator": generators, "resize": False})
            drawings.append(drawn)
            own = _stretch(drawn.images, size) if size and options.get("resize", True) else drawn.images
            images.update(zip(places, own, strict=True))
        same = len({drawn.native_size for drawn in drawings}) == 1
        ordered = [images[place] for place in sorted(images)]
        return replace(drawings[0], images=ordered, native_size=drawings[0].native_size if same else None)

    def stream(self, inputs: dict[str, Any], options: dict[str, Any]) -> Iterator[ImageProgress | ImageDone]:
        """`draw` in a thread, as events; closing the iterator stops it."""
        callback = options.get("callback")

        def work(own: BackgroundWork) -> None:
            def after_step(step: int, num_steps: int, latents: torch.Tensor) -> bool:
                own.items.put(ImageProgress(step, num_steps, latents))
                wanted = callback is None or callback(step, num_steps, latents) is not False
                return wanted and not own.cancelled.is_set()

            drawn = self.draw(inputs, {**options, "callback": after_step})
            own.items.put(ImageDone(drawn.images, drawn.native_size))

        background = BackgroundWork(work)
        try:
            yield from background
        finally:
            background.close()


def _numbered(seed: Any, rows: int, per_prompt: int) -> Any:
    """One seed as a list of one per image, whose numbers go up within a chat; everything else as it is."""
    seed = plain_seed(seed)
    if not isinstance(seed, int | Integral):
        return seed
    return [int(seed) + index for _ in range(rows) for index in range(per_prompt)]


def _warn_of_empty_images(images: list[Image.Image]) -> None:
    """Log which images show nothing: all of their pixels have nearly the same colour."""
    for number, image in enumerate(images):
        if all(high - low < EMPTY_RANGE for low, high in image.getextrema()):
            logger.warning("image %d of this call shows one colour and nothing else; try another seed", number)


def _stretch(images: list[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """Images of exactly a size (height, width)."""
    target = (size[1], size[0])
    return [image if image.size == target else image.resize(target, Image.Resampling.LANCZOS) for image in images]


__all__ = ["Painter"]
