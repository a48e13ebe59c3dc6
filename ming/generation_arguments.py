"""Sorts the arguments of `generate` and `stream`: which answers are wanted, and what belongs to which of them."""

from dataclasses import dataclass, field

import torch

from .drawing import IMAGE_INPUTS, RELEASED_INPUTS
from .speech import VOICE_INPUTS

# Serves speech and drawing.
RANDOMNESS = ("seed", "generator")


@dataclass
class Call:
    """A sorted call.

    Args:
        modes: of "text", "audio" and "image"; speech is text read aloud, so "audio" includes "text".
        kwargs: for the library's `generate`.
        speech, drawing: for `speak` and for the image mode.
        released: asked for in the released way (`image_gen=True`), which returns the bare picture.
    """

    modes: tuple[str, ...]
    kwargs: dict
    speech: dict = field(default_factory=dict)
    drawing: dict = field(default_factory=dict)
    released: bool = False

    @property
    def only_draws(self) -> bool:
        return self.modes == ("image",)


def sort_call(
    available: tuple[str, ...],
    context: int,
    inputs: torch.Tensor | None,
    generation_mode: str | list[str] | tuple[str, ...] | None,
    talker_kwargs: dict | None,
    kwargs: dict,
) -> Call:
    """Sort and check the arguments of a call.

    Args:
        available: the modes of the model.
        context: the longest prompt, in tokens.

    Raises:
        ValueError: an unknown mode, arguments of a mode that is not asked for, or a prompt that is too long.
    """
    kwargs = dict(kwargs)
    released = bool(kwargs.pop("image_gen", False))
    if released:
        generation_mode = generation_mode or "image"
        kwargs.update({new: kwargs.pop(old) for old, new in RELEASED_INPUTS.items() if old in kwargs})
    wanted = (generation_mode or "text",) if isinstance(generation_mode, str | None) else tuple(generation_mode)
    if unknown := [mode for mode in wanted if mode not in available]:
        raise ValueError(
            f"generation_mode={unknown[0]!r} is not available; this model answers in: {', '.join(available)}"
        )
    call = Call(tuple(mode for mode in available if mode in wanted), kwargs, released=released)
    _assign(call, "audio", call.speech, VOICE_INPUTS, "speaks")
    _assign(call, "image", call.drawing, IMAGE_INPUTS, "draws")
    if talker_kwargs and "audio" not in call.modes:
        raise ValueError("talker_kwargs: only generation_mode='audio' speaks; pass it, or leave this out")
    call.speech.update(talker_kwargs or {})
    _share_randomness(call)
    if inputs is not None:
        kwargs["input_ids"] = inputs
    input_ids = kwargs.get("input_ids")
    if input_ids is None and call.modes != ("text",):
        raise ValueError(f"generation_mode={generation_mode!r} needs input_ids (the processor's output)")
    if input_ids is not None and input_ids.shape[1] > context:
        raise ValueError(f"the prompt has {input_ids.shape[1]} tokens; the model's context is {context}")
    return call


def check_ids_alone(input_ids: torch.Tensor | None, image_token_id: int) -> None:
    """Raise for a prompt whose ids have places for pictures, without the pictures: it would be answered by guessing.

    Places for sounds cannot be told by the model's configuration.
    """
    if input_ids is not None and (count := int((input_ids == image_token_id).sum())):
        raise ValueError(
            f"the prompt has {count} image or video tokens but no media were given; pass all of the processor's "
            "output, generate(**inputs)"
        )


def _assign(call: Call, mode: str, options: dict, names: tuple[str, ...], does: str) -> None:
    """Move the arguments of a mode to its options; they are refused where the mode is not asked for."""
    given = [name for name in names if name in call.kwargs]
    if given and mode not in call.modes:
        raise ValueError(f"{', '.join(given)}: only generation_mode={mode!r} {does}; pass it, or leave this out")
    options.update({name: call.kwargs.pop(name) for name in given})


def _share_randomness(call: Call) -> None:
    """Move seed and generator to what draws random numbers of its own, speech and pictures."""
    given = {name: call.kwargs.pop(name) for name in RANDOMNESS if name in call.kwargs}
    if given and call.modes == ("text",):
        raise ValueError(f"{', '.join(given)}: only generation_mode='audio' or 'image' takes it")
    for mode, options in (("audio", call.speech), ("image", call.drawing)):
        if mode in call.modes:
            options.update(given)


__all__ = ["Call", "check_ids_alone", "sort_call"]
