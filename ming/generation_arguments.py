"""Sorts the arguments of `generate` and `stream`: which answers are wanted, and what belongs to which of them."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig, GenerationMixin, ProcessorMixin

from .argument_checks import NUMBER_SETTINGS, continues, raise_if_no_settings, raise_if_no_token_ids, shown
from .compiled import settings_of

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
COUNTS = ("num_beams", "num_return_sequences")
# What the library returns beside the ids.
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
TOKENIZERS = ("tokenizer", "assistant_tokenizer")
GUESSING = ("prompt_lookup_num_tokens", "assistant_model")  # several tokens at once, which the model confirms
# What the library does with token ids alone, so not for a prompt of embeddings.
NEED_IDS = ("prefill_chunk_size", *GUESSING)
# Settings that name tokens of the model. Of those that end a reply, negative ones stand for none.
TOKENS = (
    *("forced_bos_token_id", "forced_eos_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("suppress_tokens", "begin_suppress_tokens"),
)
UNREAD_TOKENS = ("bos_token_id", "eos_token_id")  # no reply of the model holds an id beyond its vocabulary
# Serve speech and images.
RANDOMNESS = ("seed", "generator")


# The arguments that the library's `generate` takes by position, behind the prompt.
POSITIONAL = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:-1]
GENERATE_ARGUMENTS = {"inputs", *POSITIONAL, "tokenizer", "assistant_tokenizer", "trust_remote_code"}


@dataclass(frozen=True)
class GenerationArguments:
    """The arguments of one call, sorted.

    Args:
        modes: of "text", "audio" and "image"; speech is text read aloud, so "audio" includes "text".
        text: for the library's `generate`.
        speech, image: for `Speaker.speak` and for the image mode.
        released: asked for in the released way (`image_gen=True`), which returns bare images.
        compiled: whether the steps of text, speech and images are compiled, and how.
    """

    modes: tuple[str, ...]
    text: dict[str, Any]
    speech: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    released: bool = False
    compiled: bool | CompileConfig = False

    def num_rows(self, model: Any) -> int:
        """Replies of a model: chats times `num_return_sequences`, which a configuration may say, too."""
        return len(self.text["input_ids"]) * settings_of(model, self.text).get("num_return_sequences", 1)


def by_name(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` behind the prompt, all by name.

    Raises:
        TypeError: more than the library takes by position, or one argument twice.
    """
    if len(args) > len(POSITIONAL):
        raise TypeError(f"generate takes {len(POSITIONAL)} arguments by position behind the prompt, got {len(args)}")
    placed = dict(zip(POSITIONAL, args, strict=False))
    if twice := [name for name in placed if name in kwargs]:
        raise TypeError(f"{', '.join(twice)}: given by position and by name; give it once")
    return placed | kwargs


def sort_arguments(
    available: Sequence[str],
    inputs: torch.Tensor | None,
    generation_mode: str | list[str] | tuple[str, ...] | None,
    talker_kwargs: dict[str, Any] | None,
    kwargs: dict[str, Any],
    compile_decoding: bool | CompileConfig = False,
) -> GenerationArguments:
    """Sort the arguments of a call.

    Args:
        available: the modes of the model.
        compile_decoding: whether its steps are compiled where the call does not say so.

    Raises:
        ValueError: an unknown mode, arguments of a mode that is not asked for, or a value that cannot be used.
        TypeError: an argument of another kind than its name says.
    """
    # The library compares the counts with numbers also where they are None.
    ours = (*COUNTS, *VOICE_ARGUMENTS, *IMAGE_ARGUMENTS, *RELEASED_IMAGE_ARGUMENTS, *RANDOMNESS)
    kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in ours}
    raise_if_no_settings({**kwargs, "talker_kwargs": talker_kwargs})
    kwargs = _converted(kwargs)
    released = bool(kwargs.pop("image_gen", False))
    modes = _modes(available, generation_mode, released)
    kwargs = _renamed(kwargs) if released else kwargs
    compiled = kwargs.pop("compile", None)
    of_talker = (talker_kwargs or {}).get("compile")
    _raise_if_contradicted({"compile": compiled}, "compile", "talker_kwargs['compile']", of_talker)
    compiled = compile_decoding if compiled is None else compiled
    if talker_kwargs and "audio" not in modes:
        raise ValueError("talker_kwargs: only generation_mode='audio' speaks; pass it, or leave this out")
    if modes == ("image",):
        _raise_if_several_asked(kwargs)
    speech = _taken(kwargs, modes, "audio", VOICE_ARGUMENTS, "speaks")
    image = _taken(kwargs, modes, "image", IMAGE_ARGUMENTS, "draws")
    randomness = {name: kwargs.pop(name) for name in RANDOMNESS if name in kwargs}
    if randomness and modes == ("text",):
        raise ValueError(f"{', '.join(randomness)}: only generation_mode='audio' or 'image' takes it")
    speech = _with_more(randomness | speech, talker_kwargs or {})
    if inputs is not None and kwargs.get("input_ids") is not None:
        raise ValueError("inputs and input_ids are two names of one argument; give one of them")
    if inputs is not None:
        kwargs["input_ids"] = inputs
    if kwargs.get("input_ids") is None and modes != ("text",):
        raise ValueError(f"generation_mode={generation_mode or 'image'!r} needs input_ids (the processor's output)")
    return GenerationArguments(
        modes,
        kwargs,
        {"compile": compiled} | speech if "audio" in modes else {},
        {"compile": compiled} | image | randomness if "image" in modes else {},
        released,
        compiled,
    )


def _converted(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments in the form that the library takes."""
    # Its own server hands over the processor in the place of its tokenizer.
    tokenizers = {name: kwargs[name].tokenizer for name in TOKENIZERS if isinstance(kwargs.get(name), ProcessorMixin)}
    # It refuses whole numbers for some of these.
    numbers = {name: float(kwargs[name]) for name in NUMBER_SETTINGS if kwargs.get(name) is not None}
    config = kwargs.get("generation_config")
    whole = [name for name in NUMBER_SETTINGS if isinstance(getattr(config, name, None), Integral)]
    if not whole:
        return kwargs | tokenizers | numbers
    config = copy.copy(config)
    for name in whole:
        setattr(config, name, float(getattr(config, name)))
    return kwargs | tokenizers | numbers | {"generation_config": config}


def _modes(available: Sequence[str], generation_mode: Any, released: bool) -> tuple[str, ...]:
    """The modes of a call, in the order of those that are available; `released`: `image_gen=True` asks for one."""
    if not isinstance(generation_mode, str | list | tuple | None):
        raise TypeError(f"generation_mode={shown(generation_mode)} must be one of {', '.join(available)}, or a list")
    if generation_mode is None:
        generation_mode = "image" if released else "text"
    wanted = (generation_mode,) if isinstance(generation_mode, str) else tuple(generation_mode)
    if unknown := [mode for mode in wanted if mode not in available]:
        raise ValueError(
            f"generation_mode={shown(unknown[0])} is not available; this model answers in: {', '.join(available)}"
        )
    if not wanted:
        raise ValueError(f"generation_mode={shown(generation_mode)} is empty; it must hold: {', '.join(available)}")
    if released and "image" not in wanted:
        raise ValueError(
            f"image_gen=True and generation_mode={shown(generation_mode)} contradict each other; leave one of them out"
        )
    return tuple(mode for mode in available if mode in wanted)


def _with_more(speech: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Arguments of speech with those of `talker_kwargs`, which must not contradict them."""
    for name, value in more.items():
        _raise_if_contradicted(speech, name, f"talker_kwargs[{name!r}]", value)
    return speech | _said(more)


def _said(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without those that are None, which stands for left out."""
    return {name: value for name, value in arguments.items() if value is not None}


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the released names of drawing replaced by ours.

    Raises:
        ValueError: both names are given, with different values.
    """
    old = {name: kwargs[name] for name in RELEASED_IMAGE_ARGUMENTS if name in kwargs}
    named = {name: value for name, value in kwargs.items() if name not in old}
    for name, value in old.items():
        _raise_if_contradicted(named, RELEASED_IMAGE_ARGUMENTS[name], name, value)
    return named | {RELEASED_IMAGE_ARGUMENTS[name]: value for name, value in old.items()}


def _raise_if_contradicted(arguments: dict[str, Any], name: str, other: str, value: Any) -> None:
    """Refuse an argument that is said in another place, too, with another value; None is left out in both."""
    own = arguments.get(name)
    if own is not None and value is not None and not _same(own, value):
        raise ValueError(f"{name}={shown(own)} and {other}={shown(value)} contradict each other; give one of them")


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one object, or plain and equal; arrays and objects have no equality to rely on."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (all(isinstance(each, (str, Real)) for each in (one, other)) and one == other)


def _raise_if_several_asked(kwargs: dict[str, Any]) -> None:
    """Refuse several replies where images alone are wanted; what a model's own configuration says is about texts."""
    asked = kwargs.get("num_return_sequences") or getattr(kwargs.get("generation_config"), "num_return_sequences", 1)
    if asked is not None and asked > 1:
        raise ValueError(
            f"num_return_sequences={shown(asked)} is for texts; pass num_images_per_prompt={shown(asked)} for several "
            "images of a chat"
        )


def _taken(kwargs: dict[str, Any], modes: tuple[str, ...], mode: str, names: tuple[str, ...], does: str) -> dict:
    """Take the arguments of a mode out of all; they are refused where the mode is not asked for."""
    given = [name for name in names if name in kwargs]
    if given and mode not in modes:
        raise ValueError(f"{', '.join(given)}: only generation_mode={mode!r} {does}; pass it, or leave this out")
    return {name: kwargs.pop(name) for name in given}


def raise_if_outputs_lost(text: dict[str, Any]) -> None:
    """Refuse to compute what neither speech, images nor events have a place for.

    Args:
        text: for the library's `generate`.

    Raises:
        ValueError: naming the outputs and who returns them.
    """
    settings = text.get("generation_config")
    names = ("return_dict_in_generate", *OUTPUTS)
    in_dict, *asked = (getattr(settings, name, None) if text.get(name) is None else text[name] for name in names)
    # Without the dict the library returns ids alone; the released demo asks for hidden states like that.
    lost = [name for name, is_asked in zip(OUTPUTS, asked, strict=True) if is_asked]
    if in_dict and lost:
        raise ValueError(
            f"{', '.join(lost)}: only generate with generation_mode='text' returns it; leave it out, or ask for the "
            "text alone first"
        )


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


def raise_if_media_missing(
    input_ids: torch.Tensor | None,
    token_id: int,
    remedy: str = "pass all of the processor's output, generate(**inputs)",
    kind: str = "image or video",
) -> None:
    """Refuse a prompt whose ids have places for media, without the media: it would be answered by guessing.

    Places for audio cannot be told by the model's configuration.

    Args:
        token_id: of these places; kind: of the media in them.
    """
    if input_ids is not None and (count := int((input_ids == token_id).sum())):
        raise ValueError(f"the prompt has {count} {kind} tokens but no media were given; {remedy}")


def raise_if_unknown(model: Any, text: Mapping[str, Any]) -> None:
    """Refuse misspelt arguments of `generate`, as the library does before it writes: other modes work before that.

    Args:
        text: for the library's `generate`.

    Raises:
        ValueError: it names them.
    """
    settings, of_model = GenerationConfig(), inspect.signature(model.forward).parameters
    unknown = [
        name
        for name in text
        if name not in GENERATE_ARGUMENTS and name not in of_model and not hasattr(settings, name)
    ]
    if unknown:
        raise ValueError(f"arguments of generate that are not used by the model: {unknown}; check the spelling")


def raise_if_unanswerable(model: Any, text: dict[str, Any], media: Sequence[str], vocab_size: int) -> None:
    """Refuse what the library's `generate` takes from no model, or takes without the media.

    Args:
        model: has a `generation_config`. text: for the library's `generate`.
        media: names of the inputs that hold media.

    Raises:
        ValueError: a prepared mask, a token that the model does not have, work on token ids that are not given,
            code of a repository without consent, or media for the engine of continuous batching.
    """
    mask = text.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        raise ValueError(f"attention_mask={shown(mask)} must be a tensor [B, L], 0 at padding; generate prepares it")
    settings = settings_of(model, text)
    raise_if_no_settings(settings)
    implementation = settings.get("cache_implementation")
    for name in TOKENS:
        # Configurations of small models name tokens of the vocabulary that they were cut from, which nothing reads.
        value = text.get(name) if name in UNREAD_TOKENS else settings.get(name)
        _raise_if_no_tokens_of_model(name, value, vocab_size)
    _raise_if_unservable(text, settings)
    _raise_if_untrusted(text)
    if "offloaded" in str(implementation) and model.device.type == "cpu":
        raise ValueError(
            f"cache_implementation={shown(implementation)} moves keys and values from an accelerator to the memory of "
            "the CPU, where this model is already; leave it out"
        )
    given = [name for name in media if text.get(name) is not None]
    if implementation == "paged" and given:
        raise ValueError(
            f"cache_implementation='paged' is the library's continuous batching, which takes no media, got "
            f"{', '.join(given)}; leave it out, pass a batch of chats, or use `ming serve`"
        )


def _raise_if_no_tokens_of_model(name: str, value: Any, vocab_size: int) -> None:
    """Refuse ids beyond the vocabulary, and negative ones but for those that end a reply; None is left out."""
    if value is None:
        return
    ids = torch.as_tensor(value).flatten().tolist()
    least = min([0, *ids]) if name == "eos_token_id" else 0
    if not all(least <= token < vocab_size for token in ids):
        raise ValueError(f"{name}={shown(value)} is no token of the model, which has {vocab_size}")


def only_tokens(function: Callable[[int, torch.Tensor], Any], vocab_size: int) -> Callable[[int, torch.Tensor], Any]:
    """A `prefix_allowed_tokens_fn` whose answers are checked: the library writes to them as places of the logits."""

    def checked(row: int, ids: torch.Tensor) -> Any:
        allowed = function(row, ids)
        raise_if_no_token_ids("prefix_allowed_tokens_fn", allowed)
        _raise_if_no_tokens_of_model("prefix_allowed_tokens_fn", allowed, vocab_size)
        return allowed

    return checked


def _raise_if_untrusted(text: Mapping[str, Any]) -> None:
    """Refuse code of a repository, also of a local one, without consent: the library would ask on the terminal."""
    custom = text.get("custom_generate")
    if isinstance(custom, str) and text.get("trust_remote_code") is not True:
        raise ValueError(
            f"custom_generate={shown(custom)} runs the code of that repository; pass trust_remote_code=True if you "
            "trust it, or a function of your own"
        )


def _raise_if_unservable(text: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse guesses by the first layers, and guesses or chunks without what they need of the prompt."""
    early_exit = settings.get("assistant_early_exit")
    if early_exit is not None:
        raise ValueError(
            f"assistant_early_exit={shown(early_exit)}: this model cannot guess with its first layers; pass an "
            "assistant_model, or prompt_lookup_num_tokens"
        )
    bare = all(text.get(name) is None for name in ("mm_token_type_ids", "inputs_embeds"))
    goes_on = bare and continues(text.get("past_key_values"))
    for name in (*GUESSING, "use_cache"):
        if goes_on and settings.get(name) not in (None, True):
            raise ValueError(
                f"{name}={shown(settings[name])}: the library would read all of input_ids again behind "
                "past_key_values; pass all that the processor makes of the conversation, or leave one of them out"
            )
    if text.get("input_ids") is not None or text.get("inputs_embeds") is None:
        return
    for name in NEED_IDS:
        if settings.get(name) is not None:
            raise ValueError(
                f"{name}={shown(settings[name])} needs the token ids of the prompt; pass input_ids beside "
                "inputs_embeds, or leave it out"
            )


def raise_if_several(settings: Mapping[str, Any], why: str) -> None:
    """Refuse settings of `generate` that ask for several replies, or for several at work at once.

    Args:
        settings: with those of the configurations, see `settings_of`.
        why: what one reply is needed for, and the remedy.

    Raises:
        ValueError: it names the setting.
    """
    for name in COUNTS:
        if settings.get(name, 1) > 1:
            raise ValueError(f"{name}={shown(settings[name])}: {why}")


def raise_if_custom(options: Mapping[str, Any], why: str) -> None:
    """Refuse a function of the user's own that writes the reply, where more is needed than what it returns.

    Args:
        why: what is needed, and the remedy.

    Raises:
        ValueError: it names the function.
    """
    custom = options.get("custom_generate")
    if custom is not None:
        raise ValueError(f"custom_generate={getattr(custom, '__name__', shown(custom))}: {why}")


def raise_if_states_hidden(cache: Any) -> None:
    """Refuse a cache that holds part of the prompt already: the talker is told the states of all of it.

    Raises:
        ValueError: it names the number of tokens.
    """
    if continues(cache) and (seen := int(cache.get_seq_length())):
        raise ValueError(
            f"past_key_values hold {seen} tokens: generation_mode='audio' tells the talker the states of the whole "
            "prompt, and a cache keeps none; leave past_key_values out, or answer in text and use model.speak"
        )


def end_token_ids(model: Any) -> set[int | None]:
    """The tokens that end a reply of a model; its `generation_config` holds one id, a list of them, or None."""
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}


__all__ = [
    "GenerationArguments",
    "by_name",
    "end_token_ids",
    "only_tokens",
    "raise_if_custom",
    "raise_if_media_missing",
    "raise_if_no_room_to_draw",
    "raise_if_outputs_lost",
    "raise_if_several",
    "raise_if_states_hidden",
    "raise_if_too_long",
    "raise_if_unanswerable",
    "raise_if_unknown",
    "sort_arguments",
]
