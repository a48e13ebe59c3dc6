"""Sorts the arguments of `generate` and `stream`: which answers are wanted, and what belongs to which of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# What the audio mode passes on to `Speaker.speak`.
VOICE_ARGUMENTS = ("speaker", "prompt_audio", "prompt_text")
# What the image mode passes on to `ImageGen.draw`.
IMAGE_ARGUMENTS = (
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "num_images_per_prompt",
    "callback",
    "progress",
    "resize",
)
RELEASED_IMAGE_ARGUMENTS = {
    "image_gen_height": "height",
    "image_gen_width": "width",
    "image_gen_steps": "num_inference_steps",
    "image_gen_cfg": "guidance_scale",
    "image_gen_seed": "seed",
}
# Serve speech and images.
RANDOMNESS = ("seed", "generator")


@dataclass(frozen=True)
class GenerationArguments:
    """The arguments of one call, sorted.

    Args:
        modes: of "text", "audio" and "image"; speech is text read aloud, so "audio" includes "text".
        text: for the library's `generate`.
        speech, image: for `Speaker.speak` and for the image mode.
        released: asked for in the released way (`image_gen=True`), which returns the bare image.
    """

    modes: tuple[str, ...]
    text: dict[str, Any]
    speech: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    released: bool = False

    @property
    def num_rows(self) -> int:
        """Replies of the call: chats times `num_return_sequences`."""
        return len(self.text["input_ids"]) * (self.text.get("num_return_sequences") or 1)


def sort_arguments(
    available: Sequence[str],
    inputs: torch.Tensor | None,
    generation_mode: str | list[str] | tuple[str, ...] | None,
    talker_kwargs: dict[str, Any] | None,
    kwargs: dict[str, Any],
) -> GenerationArguments:
    """Sort the arguments of a call.

    Args:
        available: the modes of the model.

    Raises:
        ValueError: an unknown mode, or arguments of a mode that is not asked for.
    """
    kwargs = dict(kwargs)
    released = bool(kwargs.pop("image_gen", False))
    if released:
        generation_mode = generation_mode or "image"
        kwargs.update({new: kwargs.pop(old) for old, new in RELEASED_IMAGE_ARGUMENTS.items() if old in kwargs})
    wanted = (generation_mode or "text",) if isinstance(generation_mode, str | None) else tuple(generation_mode)
    if unknown := [mode for mode in wanted if mode not in available]:
        raise ValueError(
            f"generation_mode={unknown[0]!r} is not available; this model answers in: {', '.join(available)}"
        )
    modes = tuple(mode for mode in available if mode in wanted)
    if talker_kwargs and "audio" not in modes:
        raise ValueError("talker_kwargs: only generation_mode='audio' speaks; pass it, or leave this out")
    speech = {**_taken(kwargs, modes, "audio", VOICE_ARGUMENTS, "speaks"), **(talker_kwargs or {})}
    image = _taken(kwargs, modes, "image", IMAGE_ARGUMENTS, "draws")
    randomness = {name: kwargs.pop(name) for name in RANDOMNESS if name in kwargs}
    if randomness and modes == ("text",):
        raise ValueError(f"{', '.join(randomness)}: only generation_mode='audio' or 'image' takes it")
    if inputs is not None:
        kwargs["input_ids"] = inputs
    if kwargs.get("input_ids") is None and modes != ("text",):
        raise ValueError(f"generation_mode={generation_mode!r} needs input_ids (the processor's output)")
    return GenerationArguments(
        modes,
        kwargs,
        speech | randomness if "audio" in modes else {},
        image | randomness if "image" in modes else {},
        released,
    )


def _taken(kwargs: dict[str, Any], modes: tuple[str, ...], mode: str, names: tuple[str, ...], does: str) -> dict:
    """Take the arguments of a mode out of all; they are refused where the mode is not asked for."""
    given = [name for name in names if name in kwargs]
    if given and mode not in modes:
        raise ValueError(f"{', '.join(given)}: only generation_mode={mode!r} {does}; pass it, or leave this out")
    return {name: kwargs.pop(name) for name in given}


def raise_if_too_long(num_tokens: int, context: int, what: str = "the prompt", room: int = 0) -> None:
    """Refuse a prompt that does not fit into the model's context.

    Args:
        room: tokens that must be left for the reply.

    Raises:
        ValueError: naming the length and the context.
    """
    if num_tokens + room > context:
        raise ValueError(f"{what} has {num_tokens} tokens; the model's context is {context}")


def raise_if_no_room_to_draw(num_tokens: int, image_config: Any, context: int) -> None:
    """Refuse a prompt that does not fit into the model's context with the query tokens behind it.

    Args:
        image_config: the `ImageGenConfig`; every scale of its queries stands between two markers.

    Raises:
        ValueError: naming the length and the context.
    """
    queries = image_config.num_queries + 2 * len(image_config.scales)
    raise_if_too_long(num_tokens + queries, context, "the prompt with its query tokens")


def raise_if_media_missing(input_ids: torch.Tensor | None, image_token_id: int) -> None:
    """Refuse a prompt whose ids have places for images, without the images: it would be answered by guessing.

    Places for audio cannot be told by the model's configuration.
    """
    if input_ids is not None and (count := int((input_ids == image_token_id).sum())):
        raise ValueError(
            f"the prompt has {count} image or video tokens but no media were given; pass all of the processor's "
            "output, generate(**inputs)"
        )


def end_token_ids(model: Any) -> set[int | None]:
    """The tokens that end a reply of a model; its `generation_config` holds one id, a list of them, or None."""
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}


__all__ = [
    "GenerationArguments",
    "end_token_ids",
    "raise_if_media_missing",
    "raise_if_no_room_to_draw",
    "raise_if_too_long",
    "sort_arguments",
]
