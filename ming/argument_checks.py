"""What arguments must be: tables of names, and checks that say what is wrong before any work.

One table per kind of argument: tensors of a prompt, objects that are called later on, flags and numbers. Every check
raises one error that names the argument, its value and what is wanted: `TypeError` for a thing of another kind,
`ValueError` for a value that cannot be used. None always stands for an argument that was left out.

Shape letters: B batch, L tokens, H decoder hidden size, N images, videos or audio segments, P patches.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention.flex_attention import BlockMask
from transformers import CompileConfig, GenerationConfig, WatermarkingConfig

from .token_types import NUM_TYPES

LARGEST_NUMBER = 1e18  # of options; larger ones are mistakes, and overflow somewhere
# Of temperatures and penalties, which divide logits. Those of half precision, 65,504 at most, stay far from float32's
# overflow even with both. A token 0.02 below the likeliest has no chance any more: a lower temperature adds nothing.
LOWEST_DIVISOR = 1e-4
# Beams divide by the length of a reply to this power; that of the longest context is still a float32.
LARGEST_LENGTH_PENALTY = 8
LARGEST_DECAY = 100  # of the growth of the end token's score per token; it is raised to the number of tokens
SHOWN_CHARACTERS = 80
IGNORED_LABEL = -100
MAX_TOKEN_ID = 2**32 - 1  # that a tokenizer can look up
MAX_POSITIONS = 2**31  # beyond any context: only negative ones are mistakes for sure
WHAT_VALUES_ARE = {"mm_token_type_ids": "are types", "position_ids": "are positions"}
INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Args:
        wanted: what is wanted, for errors.
        fits: whether a value is of this kind.
    """

    wanted: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class TensorKind:
    """A kind of tensor.

    Args:
        shape: of the tensor, for errors.
        dtype: "integers" (int32 or int64), "floats" or "numbers" (both, and bool).
        dims: numbers of dimensions that are accepted; None leaves the shape to the part that reads the tensor.
    """

    shape: str
    dtype: str
    dims: tuple[int, ...] | None = None

    @property
    def wanted(self) -> str:
        """What is wanted, for errors."""
        return f"a tensor {self.shape} of {self.dtype}"


DTYPES: dict[str, Callable[[torch.Tensor], bool]] = {
    "integers": lambda tensor: tensor.dtype in INTEGERS,
    "floats": torch.Tensor.is_floating_point,
    "numbers": lambda tensor: not tensor.is_complex(),
}

# What `forward` and `generate` take as tensors.
TENSORS = {
    "input_ids": TensorKind("[B, L]", "integers", (2,)),
    "attention_mask": TensorKind("[B, L], 0 at padding", "numbers", (2, 4)),
    "position_ids": TensorKind("[B, L]", "integers", (2,)),
    "mm_token_type_ids": TensorKind("[B, L], 0 text, 1 image, 2 video, 3 audio", "integers", (2,)),
    "inputs_embeds": TensorKind("[B, L, H]", "floats", (3,)),
    "labels": TensorKind(f"[B, L], {IGNORED_LABEL} where not trained", "integers", (2,)),
    "pixel_values": TensorKind("[P, 1176]", "numbers"),
    "image_grid_thw": TensorKind("[N, 3]", "integers"),
    "image_sizes": TensorKind("[N, 2], height and width", "integers", (2,)),
    "pixel_values_videos": TensorKind("[P, 1176]", "numbers"),
    "video_grid_thw": TensorKind("[N, 3]", "integers"),
    "audio_feats": TensorKind("[B, frames, width]", "numbers"),
    "audio_feats_lengths": TensorKind("[B, N]", "numbers"),
    "audio_placeholder_loc_lens": TensorKind("[B, N, 2], (start, length)", "integers", (3,)),
    "negative_prompt_ids": TensorKind("[B, L]", "integers", (2,)),
    "negative_prompt_attention_mask": TensorKind("[B, L], 0 at padding", "numbers", (2,)),
    "cache_position": TensorKind("[L]", "integers", (1,)),
}


class InputError(ValueError):
    """Input that cannot be used, for a caller of this package or for the client of a server.

    Args:
        message: for who calls this package.
        for_request: for who sends media with a request, and has files alone: no paths, arrays or options.
        reason: the part of `for_request` that says what is wrong, without the name of the input.
    """

    def __init__(self, message: str, for_request: str = "", reason: str = ""):
        super().__init__(message)
        self.for_request, self.reason = for_request or message, reason or message


def in_words_of_request(error: Exception) -> str:
    """The text of an error for who sends media with a request, which has no paths, arrays and options."""
    return error.for_request if isinstance(error, InputError) else str(error)


def _has(*methods: str) -> Callable[[Any], bool]:
    return lambda value: all(callable(getattr(value, name, None)) for name in methods)


def _are_callables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(callable, value))


def _are_positions(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.layout == torch.strided and value.dtype in INTEGERS
    number: Any = value
    return isinstance(value, Integral) and 0 <= number < LARGEST_NUMBER


def _are_whole(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, Integral) for each in value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_channels(value: Any) -> bool:
    listed = list(value) if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value) == 1 else [value] * 3
    return len(listed) == 3 and all(isinstance(each, Real) and math.isfinite(each) for each in listed)


TEXT = Kind("a text", lambda value: isinstance(value, str))
# What is called, or asked for its attributes, in the middle of the work.
OBJECTS = {
    "past_key_values": Kind("a cache of transformers, such as DynamicCache()", _has("update", "get_seq_length")),
    "streamer": Kind("a streamer with put() and end(), such as TextStreamer", _has("put", "end")),
    "assistant_model": Kind("a model to guess tokens with", _has("generate", "forward")),
    "generation_config": Kind(
        "a GenerationConfig; what to answer in, such as 'audio', is generation_mode=",
        lambda value: isinstance(value, GenerationConfig),
    ),
    "logits_processor": Kind("a LogitsProcessorList, or a list of functions", _are_callables),
    "stopping_criteria": Kind("a StoppingCriteriaList, or a list of functions", _are_callables),
    "prefix_allowed_tokens_fn": Kind("a function of (row, ids)", callable),
    "callback": Kind("a function of (step, number of steps, latents)", callable),
    "custom_generate": Kind(
        "a function, or the name of a repository", lambda value: isinstance(value, str) or callable(value)
    ),
    "early_stopping": Kind("True, False or 'never'", lambda value: isinstance(value, (bool, np.bool_, str))),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), Kind("a list of token ids", _are_whole)),
    "compile": Kind(
        "True, False or a CompileConfig of transformers", lambda value: isinstance(value, (bool, CompileConfig))
    ),
    "prompt_states": Kind("PromptStates", _has("add")),
    "logits_to_keep": Kind("a whole number of at least 0, or a tensor of positions", _are_positions),
    "prompt_text": Kind("the words of prompt_audio, a text", TEXT.fits),
    "talker_kwargs": Kind("a dict of options of speak", _is_mapping),
    # of the processor
    **dict.fromkeys(("images_kwargs", "videos_kwargs", "audio_kwargs"), Kind("a dict of options", _is_mapping)),
    **dict.fromkeys(("text_kwargs", "common_kwargs", "processor_kwargs"), Kind("a dict of options", _is_mapping)),
    "size": Kind("a dict with shortest_edge and longest_edge, in pixels", _is_mapping),
    "resample": Kind(
        "a filter of PIL.Image.Resampling, 0 to 5",
        lambda value: isinstance(value, int) and value in list(Image.Resampling),
    ),
    "chat_template": Kind("a template, or the name of one, as text", TEXT.fits),
    "system_template": TEXT,
    "tools": Kind("a list", lambda value: isinstance(value, (list, tuple))),
    **dict.fromkeys(("image_mean", "image_std"), Kind("a number, or one for each of three channels", _are_channels)),
}
WATERMARK = Kind(
    "a WatermarkingConfig, or a dict",
    lambda value: isinstance(value, dict) or callable(getattr(value, "validate", 0)),
)
WATERMARK_FIELDS = tuple(inspect.signature(WatermarkingConfig).parameters)
FLAGS = (
    *("add_generation_prompt", "continue_final_message", "tokenize", "load_audio_from_video"),
    *("do_rescale", "do_normalize", "do_resize", "do_convert_rgb"),
    *("use_cache", "output_router_logits", "output_attentions", "output_hidden_states", "return_dict"),
    *("use_whisper_encoder", "progress", "resize", "image_gen"),
    *("do_sample", "output_scores", "output_logits", "return_dict_in_generate", "renormalize_logits"),
    *("remove_invalid_values", "synced_gpus", "token_healing", "is_assistant", "disable_compile"),
)
# Settings of `generate` that are numbers, with the lowest that is accepted; the library has upper limits of its own.
WHOLE_SETTINGS: dict[str, int] = {
    **dict.fromkeys(("max_length", "min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"), 0),
    "encoder_no_repeat_ngram_size": 0,
    **dict.fromkeys(("max_new_tokens", "num_beams", "num_return_sequences", "num_assistant_tokens"), 1),
    "num_beam_groups": 1,
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "prefill_chunk_size", "max_cache_len"), 1),
}
NUMBER_SETTINGS: dict[str, float | None] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "top_h", "typical_p", "max_time"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), LOWEST_DIVISOR),
    **dict.fromkeys(
        ("guidance_scale", "rescale_factor", "length_penalty", "diversity_penalty", "penalty_alpha"), None
    ),
}
SINGLE_TOKENS = ("pad_token_id", "bos_token_id")
TOKEN_SETTINGS = (*("pad_token_id", "bos_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"),)


def shown(value: Any) -> str:
    """A value for errors, not longer than a line whatever it is."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return "<nested Tensor>"
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"<{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}>"
    if isinstance(value, (str, bytes, bool, float, Integral)) or value is None:
        return shown_number(value)
    if isinstance(value, (list, tuple)) and len(value) <= 4 and not any(isinstance(v, (list, tuple)) for v in value):
        text = f"[{', '.join(map(shown, value))}]"
        return text if len(text) <= SHOWN_CHARACTERS else f"<{type(value).__name__} of length {len(value)}>"
    if isinstance(value, (list, tuple, set, Mapping)):
        return f"<{type(value).__name__} of length {len(value)}>"
    return f"<{type(value).__name__}>"


def shown_number(value: Any) -> str:
    """A number for errors; Python refuses to write very long integers."""
    huge = isinstance(value, int) and abs(value) >= LARGEST_NUMBER
    return f"<an integer of {value.bit_length()} bits>" if huge else repr(value)[:SHOWN_CHARACTERS]


def raise_if_no_number(name: str, value: Any, whole: bool = False, at_least: float | None = None) -> None:
    """Refuse what is no finite number, or is below `at_least`.

    Raises:
        ValueError: it names the value and what is wanted.
    """
    number: Any = value  # the checker knows no comparison of `Real`
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, (bool, np.bool_))
    finite = is_number and abs(number) < LARGEST_NUMBER  # not for NaN
    if not finite or (at_least is not None and number < at_least):
        least = "" if at_least is None else f" of at least {at_least:g}"
        raise ValueError(f"{name}={shown(value)} must be a {'whole' if whole else 'finite'} number{least}")


def raise_if_no_temperature(name: str, value: Any) -> None:
    """Refuse what is no finite number, below 0, or so little above 0 that the logits overflow.

    Raises:
        ValueError: it names the value and what is wanted.
    """
    raise_if_no_number(name, value, at_least=0)
    if 0 < value < LOWEST_DIVISOR:
        raise ValueError(
            f"{name}={shown(value)} must be at least {LOWEST_DIVISOR:g}; 0 or do_sample=False takes the likeliest"
        )


def raise_if_no_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false; a tensor of several values, or of none, has no truth value at all.

    Raises:
        TypeError: it names the value.
    """
    if not isinstance(value, (bool, np.bool_)) and not (type(value) is int and value in (0, 1)):
        raise TypeError(f"{name}={shown(value)} must be True or False")


def raise_if_no(name: str, value: Any, kind: Kind) -> None:
    """Refuse what is not of a kind.

    Raises:
        TypeError: it names the value and what is wanted.
    """
    if not kind.fits(value):
        raise TypeError(f"{name}={shown(value)} must be {kind.wanted}")


def raise_if_no_texts(name: str, value: Any) -> None:
    """Refuse what is neither a text nor a list of texts.

    Raises:
        TypeError: it names the value.
        ValueError: the list is empty.
    """
    if isinstance(value, str):
        return
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name}={shown(value)} must be a text or a list of texts")
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one text")


def raise_if_no_settings(options: Mapping[str, Any]) -> None:
    """Refuse objects, flags and numbers that are not what their name says; other names are passed over.

    Args:
        options: of `generate`, `forward` or the image mode; those of a `generation_config` among them count, too.

    Raises:
        TypeError, ValueError: they name the option, its value and what is wanted.
    """
    for name, value in options.items():
        if value is not None and name in SETTINGS:
            SETTINGS[name](name, value)
    if options.get("generation_config") is not None:
        raise_if_no_settings(vars(options["generation_config"]))


def _raise_if_no_tokens(name: str, value: Any) -> None:
    """Refuse what is neither a token id nor, but for padding and beginning, several; negative ids stand for none."""
    if isinstance(value, torch.Tensor):
        raise_if_not_plain(name, value)
        value = value.tolist()
    if isinstance(value, (list, tuple)) and name in SINGLE_TOKENS:
        raise ValueError(f"{name}={shown(value)} must be one whole number")
    for token in value if isinstance(value, (list, tuple)) else (value,):
        raise_if_no_number(name, token, whole=True)


def _raise_if_no_length_penalty(name: str, value: Any) -> None:
    raise_if_no_number(name, value)
    if abs(value) > LARGEST_LENGTH_PENALTY:
        most = LARGEST_LENGTH_PENALTY
        raise ValueError(f"{name}={shown(value)} must be from {-most} to {most}; 1 is none, more favours long replies")


def _raise_if_no_decay(name: str, value: Any) -> None:
    """Refuse what is no pair of a number of tokens and of the growth of the end token's score."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"{name}={shown(value)} must be (tokens before it, factor per token), such as (20, 1.1)")
    raise_if_no_number(f"{name}[0]", value[0], whole=True, at_least=0)
    raise_if_no_number(f"{name}[1]", value[1], at_least=LOWEST_DIVISOR)
    if value[1] > LARGEST_DECAY:
        raise ValueError(f"{name}[1]={shown(value[1])} must be at most {LARGEST_DECAY}; 1.1 ends replies soon")


def _raise_if_no_bias(name: str, value: Any) -> None:
    """Refuse what is no finite number per sequence of ids; the library checks the ids."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise TypeError(f"{name}={shown(value)} must be a dict such as {{(17, 4): -2.0}}, or a list of [ids, bias]")
    for ids, bias in pairs:
        raise_if_no_number(f"{name} of {shown(ids)}", bias)


def _raise_if_no_watermark(name: str, value: Any) -> None:
    """Refuse what is no watermark; the library checks the ranges of one whose fields are of the right kinds."""
    raise_if_no(name, value, WATERMARK)
    if not isinstance(value, dict):
        return
    if unknown := [key for key in value if key not in WATERMARK_FIELDS]:
        raise ValueError(f"{name} has no {shown(unknown[0])}; it takes {', '.join(WATERMARK_FIELDS)}")
    for key, number in value.items():
        if key != "seeding_scheme":
            raise_if_no_number(f"{name}[{key!r}]", number, whole=key in ("hashing_key", "context_width"))


def _raise_if_no_layers(name: str, value: Any) -> None:
    """Refuse what is neither a flag nor a layer's number or several: states of these layers alone are given."""
    if isinstance(value, (list, tuple)):
        for layer in value:
            raise_if_no_number(name, layer, whole=True)
    elif not isinstance(value, int):
        raise_if_no_flag(name, value)


# The check of every setting.
SETTINGS: dict[str, Callable[[str, Any], None]] = {
    **{name: partial(raise_if_no, kind=kind) for name, kind in OBJECTS.items()},
    **dict.fromkeys(FLAGS, raise_if_no_flag),
    "output_hidden_states": _raise_if_no_layers,
    "watermarking_config": _raise_if_no_watermark,
    **{name: partial(raise_if_no_number, whole=True, at_least=least) for name, least in WHOLE_SETTINGS.items()},
    **{name: partial(raise_if_no_number, at_least=least) for name, least in NUMBER_SETTINGS.items()},
    "temperature": raise_if_no_temperature,
    "length_penalty": _raise_if_no_length_penalty,
    "exponential_decay_length_penalty": _raise_if_no_decay,
    "sequence_bias": _raise_if_no_bias,
    **dict.fromkeys(TOKEN_SETTINGS, _raise_if_no_tokens),
}


def raise_if_not_plain(name: str, tensor: torch.Tensor, on_meta: bool = False) -> None:
    """Refuse tensors that hold no numbers in the usual way: sparse, quantised or nested ones, and those without data.

    Args:
        on_meta: whether tensors without data are what is wanted.

    Raises:
        ValueError: it names the tensor.
    """
    unusual = tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized
    if unusual or (tensor.is_meta and not on_meta):
        raise ValueError(
            f"{name}={shown(tensor)} is sparse, quantised, nested or on the meta device; pass a plain tensor"
        )


def raise_if_no_tensors(inputs: Mapping[str, Any], on_meta: bool = False) -> None:
    """Refuse inputs of `TENSORS` that are no tensors of their kind; other names are passed over.

    Raises:
        TypeError: no tensor.
        ValueError: a tensor of another layout, dtype or number of dimensions, or one without values.
    """
    for name, value in inputs.items():
        if value is not None and name in TENSORS:
            _raise_if_no_tensor(name, value, TENSORS[name], on_meta)


def _raise_if_no_tensor(name: str, value: Any, kind: TensorKind, on_meta: bool) -> None:
    if name == "attention_mask" and isinstance(value, (Mapping, BlockMask)):  # what the library's mask functions make
        return
    if not isinstance(value, torch.Tensor):
        unpack = "; unpack the processor's output: generate(**inputs)" if isinstance(value, Mapping) else ""
        raise TypeError(f"{name}={shown(value)} must be {kind.wanted}{unpack}")
    raise_if_not_plain(name, value, on_meta)
    if not DTYPES[kind.dtype](value) or (kind.dims is not None and value.ndim not in kind.dims):
        raise ValueError(f"{name}={shown(value)} must be {kind.wanted}")
    if value.numel() == 0:
        raise ValueError(f"{name}={shown(value)} is empty; it must be {kind.wanted} with values, or left out")


def raise_if_unfit(
    inputs: Mapping[str, Any], config: Any, step: bool = False, values: bool = True, on_meta: bool = False
) -> None:
    """Refuse the inputs of a pass over a prompt, or over what follows it, that the model cannot take.

    Args:
        inputs: of `forward` or `generate`; names outside of `TENSORS` are passed over.
        config: of the decoder, with `vocab_size` and `hidden_size`.
        step: tokens stand in a cache already: masks and positions may be longer than the ids.
        values: whether ids are compared with the vocabulary, for which a GPU has to be waited for.
        on_meta: whether the model is on the meta device.

    Raises:
        TypeError, ValueError: they name the input, what it is and what is wanted.
    """
    raise_if_no_tensors(inputs, on_meta)
    embeds = inputs.get("inputs_embeds")
    if embeds is not None and embeds.shape[2] != config.hidden_size:
        raise ValueError(f"inputs_embeds={shown(embeds)} must be a tensor [B, L, {config.hidden_size}] of floats")
    raise_if_lengths_differ(inputs, step)
    if values:
        limits = {"input_ids": config.vocab_size, "labels": config.vocab_size, "mm_token_type_ids": NUM_TYPES}
        raise_if_values_outside(inputs, {**limits, "position_ids": MAX_POSITIONS})
        raise_if_no_mask(inputs.get("attention_mask"))


def continues(cache: Any) -> bool:
    """Whether tokens stand in a cache already. Asking for their number would make a GPU wait for a static cache."""
    return cache is not None and bool(getattr(cache, "is_initialized", True))


def raise_if_other_rows(cache: Any, rows: int) -> None:
    """Refuse a cache in which another number of rows stands.

    Raises:
        ValueError: it names both numbers.
    """
    layers = getattr(cache, "layers", None)
    keys = getattr(layers[0], "keys", None) if layers else None
    if isinstance(keys, torch.Tensor) and keys.ndim == 4 and len(keys) != rows:
        raise ValueError(
            f"past_key_values hold {len(keys)} row(s), but the inputs have {rows}; use a cache of these chats, or a "
            "new one"
        )


def raise_if_lengths_differ(inputs: Mapping[str, Any], step: bool = False) -> None:
    """Refuse tensors of a prompt whose rows or lengths do not belong together.

    Args:
        inputs: tensors of the kinds of `TENSORS`.
        step: see `raise_if_unfit`.

    Raises:
        ValueError: it names both shapes.
    """
    name = next((name for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None), None)
    if name is None:
        return
    prompt = inputs[name]
    rows, length = prompt.shape[:2]
    embeds = inputs.get("inputs_embeds")
    lengths = {length} if embeds is None else {length, embeds.shape[1]}
    for other in ("attention_mask", "position_ids", "mm_token_type_ids", "labels", "inputs_embeds"):
        tensor = inputs.get(other)
        if not isinstance(tensor, torch.Tensor) or (other == "attention_mask" and tensor.ndim == 4):
            continue
        same_rows = tensor.shape[0] == rows or (other == "position_ids" and tensor.shape[0] == 1)
        fits = tensor.shape[1] in lengths or other == "inputs_embeds"
        if step and other in ("attention_mask", "position_ids"):
            fits = fits or tensor.shape[1] >= length
        if embeds is not None and other == "mm_token_type_ids":  # virtual tokens of prompt tuning stand before them
            fits = fits or tensor.shape[1] <= embeds.shape[1]
        if not (same_rows and fits):
            raise ValueError(
                f"{other} {tuple(tensor.shape)} must have the shape of {name} {tuple(prompt.shape[:2])}; pass all of "
                "the processor's output, as it is"
            )


def raise_if_values_outside(inputs: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    """Refuse token ids and labels beyond the vocabulary, and unknown token types.

    Args:
        limits: by name, the number of values that there are, from 0 on.

    All extremes are read from the device at once. Tracing, compiling and capturing leave this out: they read nothing.

    Raises:
        ValueError: it names the lowest and the highest value.
    """
    given = {name: inputs[name].detach() for name in limits if inputs.get(name) is not None}
    if not given or not _values_can_be_read(given.values()):
        return
    if "labels" in given:
        given["labels"] = given["labels"].masked_fill(given["labels"] == IGNORED_LABEL, 0)
    device = next(iter(given.values())).device
    extremes = torch.stack([end.to(device, torch.int64) for tensor in given.values() for end in tensor.aminmax()])
    found = extremes.tolist()
    for name, low, high in zip(given, found[::2], found[1::2], strict=True):
        if not 0 <= low <= high < limits[name]:
            what = WHAT_VALUES_ARE.get(name, "are tokens of the model")
            except_ignored = f", or {IGNORED_LABEL}" if name == "labels" else ""
            raise ValueError(
                f"{name} holds values from {low} to {high}; only 0 to {limits[name] - 1} {what}{except_ignored}"
            )


def raise_if_no_mask(mask: Any) -> None:
    """Refuse a mask [B, L] with other values than 0 and 1; other masks pass.

    Raises:
        ValueError: it names some of the values.
    """
    if not _is_readable_mask(mask):
        return
    strange = (mask != 0) & (mask != 1)
    if strange.any():
        values = sorted({str(value) for value in mask[strange][:100].tolist()})[:3]
        raise ValueError(f"attention_mask holds {', '.join(values)}; it must be 1 where a token is and 0 at padding")


def raise_if_rows_hidden(mask: Any) -> None:
    """Refuse the mask [B, L] of whole prompts if it hides one of them. Part of a prompt may be padding alone.

    Raises:
        ValueError: it names the rows.
    """
    if not _is_readable_mask(mask):
        return
    hidden = ~mask.bool().any(dim=1)
    if hidden.any():
        rows = hidden.nonzero()[:, 0].tolist()
        raise ValueError(f"attention_mask hides all of row(s) {shown(rows)}; leave them out, or put 1 at their tokens")


def _is_readable_mask(mask: Any) -> bool:
    """Whether it is a mask [B, L] whose values may be looked at."""
    return isinstance(mask, torch.Tensor) and mask.ndim == 2 and _values_can_be_read([mask])


def _values_can_be_read(tensors: Iterable[torch.Tensor]) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return not (traced or captured or any(tensor.is_meta for tensor in tensors))


def raise_if_no_token_ids(name: str, value: Any, depth: int = 0, most: int = MAX_TOKEN_ID) -> None:
    """Refuse what is neither a token id, nor ids, nor rows of ids, in lists, arrays or tensors.

    Args:
        depth: of lists around it. most: the highest id that there may be.

    Raises:
        TypeError: something in it is no whole number.
        ValueError: an id that no tokenizer has, such as the -100 of labels.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        _raise_if_no_array_of_ids(name, value, depth, most)
        return
    if isinstance(value, (list, tuple)) and depth < 2:
        if all(type(part) is int for part in value):  # the usual list, without a call for each id
            value = [value[0]] if len(value) == 1 else [min(value), max(value)] if value else []
        for part in value:
            raise_if_no_token_ids(name, part, depth + 1, most)
        return
    if not isinstance(value, Integral) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={shown(value)} must be token ids: a whole number, or a list, array or tensor of them")
    _raise_if_no_id(name, int(value), most)


def _raise_if_no_array_of_ids(name: str, value: torch.Tensor | np.ndarray, depth: int, most: int) -> None:
    if isinstance(value, torch.Tensor):
        raise_if_not_plain(name, value)
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    else:
        whole = bool(np.issubdtype(value.dtype, np.integer))
    if not whole or value.ndim + depth > 2:
        raise TypeError(f"{name}={shown(value)} must be token ids, integers [L] or [B, L]")
    if 0 not in value.shape:
        _raise_if_no_id(name, int(value.min()), most)
        _raise_if_no_id(name, int(value.max()), most)


def _raise_if_no_id(name: str, value: int, most: int) -> None:
    if 0 <= value <= most:
        return
    replace = f"replace the {IGNORED_LABEL} of labels by the padding token first"
    remedy = replace if value == IGNORED_LABEL else f"they go from 0 to {most}"
    raise ValueError(f"{name} holds {shown_number(value)}, which is no token id; {remedy}")


__all__ = [
    "LARGEST_NUMBER",
    "LOWEST_DIVISOR",
    "NUMBER_SETTINGS",
    "TEXT",
    "InputError",
    "Kind",
    "continues",
    "in_words_of_request",
    "raise_if_lengths_differ",
    "raise_if_no",
    "raise_if_no_flag",
    "raise_if_no_mask",
    "raise_if_no_number",
    "raise_if_no_settings",
    "raise_if_no_temperature",
    "raise_if_no_tensors",
    "raise_if_no_texts",
    "raise_if_no_token_ids",
    "raise_if_not_plain",
    "raise_if_other_rows",
    "raise_if_rows_hidden",
    "raise_if_unfit",
    "raise_if_values_outside",
    "shown",
    "shown_number",
]
