"""Arguments of `forward`, `generate`, `stream`, `speak`, drawings, chats, `decode` and the endpoint's handler."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from image_helpers import small_image_gen
from speech_helpers import build_speaking_repository
from thinker_helpers import Chat, batch, tiny_model
from transformers import DynamicCache, GenerationConfig, StaticCache

from handler import EndpointHandler
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.talker_steps import StopRules

from .conversations import processor
from .outcomes import expect
from .values import made, odd

STEPS = 3
TENSOR_NAMES = ["input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "inputs_embeds", "labels"]
MEDIA_NAMES = ["pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "audio_feats"]
MEDIA_NAMES += ["audio_feats_lengths", "audio_placeholder_loc_lens", "use_whisper_encoder"]
FORWARD_NAMES = [*TENSOR_NAMES, *MEDIA_NAMES, "past_key_values", "use_cache", "output_router_logits", "logits_to_keep"]
FORWARD_NAMES += ["output_attentions", "output_hidden_states", "return_dict", "prompt_states", "no_such_input"]
GENERATE_NAMES = [
    "max_length",
    "min_length",
    "min_new_tokens",
    "do_sample",
    "num_beams",
    "num_return_sequences",
    "top_k",
]
GENERATE_NAMES += [
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "streamer",
]
GENERATE_NAMES += [
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "generation_config",
    "logits_processor",
    "generation_mode",
]
GENERATE_NAMES += [
    "stopping_criteria",
    "assistant_model",
    "prefix_allowed_tokens_fn",
    "talker_kwargs",
    "length_penalty",
]
GENERATE_NAMES += [
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "cache_implementation",
    "early_stopping",
]
GENERATE_NAMES += [
    "prompt_lookup_num_tokens",
    "suppress_tokens",
    "bad_words_ids",
    "seed",
    "speaker",
    "generator",
    "height",
]
GENERATE_NAMES += [
    "negative_prompt_ids",
    "guidance_scale",
    "renormalize_logits",
    "custom_generate",
    "prefill_chunk_size",
]
SPEAK_NAMES = ["text", "speaker", "prompt_audio", "prompt_text", "seed", "generator", "thinker_states", "top_k"]
SPEAK_NAMES += ["temperature", "rules", "attempts", "cache_implementation", "no_such_option"]
DRAW_NAMES = [
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "num_images_per_prompt",
    "callback",
    "progress",
]
DRAW_NAMES += [
    "resize",
    "seed",
    "generator",
    "image_gen",
    "image_gen_seed",
    "attention_mask",
    "input_ids",
    "no_such_option",
]
CHAT_NAMES = [
    "content",
    "use_whisper_encoder",
    "max_new_tokens",
    "do_sample",
    "streamer",
    "eos_token_id",
    "generation_mode",
]
CHANGES = [
    "longer",
    "shorter",
    "fewer rows",
    "more rows",
    "float",
    "bool",
    "int32",
    "beyond",
    "negative",
    "flat",
    "deeper",
]
CHANGES += ["list", "numpy", "sparse", "meta", "empty", "nan"]
CALLS = ["forward", "generate", "stream", "image features", "audio features"]


def _named(names: list[str], most: int = 2) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(names), odd(), min_size=1, max_size=most)


def passes() -> st.SearchStrategy:
    """Recipes of `forward`, `generate` and `stream` over precomputed features: chats, and what is wrong with them."""
    part = st.sampled_from(["text", "image", "video", "audio"])
    return st.fixed_dictionaries(
        {
            "call": st.sampled_from([*CALLS, "forward", "generate"]),
            "chats": st.lists(st.lists(part, min_size=1, max_size=4), min_size=1, max_size=2),
            "encoder": st.sampled_from(["sanm", "whisper"]),
            "changes": st.dictionaries(
                st.sampled_from([*TENSOR_NAMES, *MEDIA_NAMES]), st.sampled_from(CHANGES), max_size=2
            ),
            "odd": st.dictionaries(st.sampled_from(FORWARD_NAMES), odd(), max_size=1),
            "settings": st.dictionaries(st.sampled_from(GENERATE_NAMES), odd(), max_size=1),
            "leave out": st.lists(st.sampled_from([*TENSOR_NAMES[:4], *MEDIA_NAMES]), max_size=1),
            "cache": st.sampled_from([None, None, None, "dynamic", "static", "other"]),
        }
    )


def settings() -> st.SearchStrategy:
    """Recipes of `generate` and `stream` with odd settings, as arguments or within a `GenerationConfig`."""
    return st.fixed_dictionaries(
        {
            "call": st.sampled_from(["generate", "stream"]),
            "settings": _named(GENERATE_NAMES, 3),
            "within": st.booleans(),
            "rows": st.integers(1, 2),
        }
    )


def outputs() -> st.SearchStrategy:
    """Recipes of speech, drawings, chats and decoding."""
    call = st.sampled_from(["speak", "speak_stream"])
    return st.one_of(
        st.fixed_dictionaries({"call": call, "options": _named(SPEAK_NAMES)}),
        st.fixed_dictionaries({"call": st.sampled_from(["draw", "draw stream"]), "options": _named(DRAW_NAMES)}),
        st.fixed_dictionaries({"call": st.just("chat"), "options": _named(CHAT_NAMES)}),
        st.fixed_dictionaries({"call": st.sampled_from(["decode", "batch_decode"]), "options": st.tuples(odd())}),
    )


def requests() -> st.SearchStrategy:
    """Recipes of requests to the handler: JSON, as the Hub's server reads it."""
    names = [
        "generation_mode",
        "speaker",
        "do_sample",
        "use_whisper_encoder",
        "max_new_tokens",
        "top_k",
        "seed",
        "height",
    ]
    names += ["width", "num_inference_steps", "num_images_per_prompt", "temperature", "top_p", "repetition_penalty"]
    names += ["guidance_scale", "no_such_parameter"]
    single = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=9))
    anything = st.recursive(
        single,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    item = st.fixed_dictionaries(
        {"type": st.one_of(st.sampled_from(["text", "image", "audio", "video"]), anything)},
        optional={
            name: st.one_of(st.just("data:a/b;base64,AAAA"), anything) for name in ("text", "image", "audio", "video")
        },
    )
    message = st.fixed_dictionaries(
        {"role": st.one_of(st.sampled_from(["user", "assistant", "system"]), anything)},
        optional={"content": st.one_of(st.text(max_size=20), st.lists(item, max_size=3), anything)},
    )
    parameters = st.dictionaries(st.sampled_from(names), anything, max_size=2)
    inputs = st.one_of(st.text(max_size=20), st.lists(message, max_size=2), anything)
    request = st.fixed_dictionaries(
        {"inputs": inputs}, optional={"parameters": st.one_of(parameters, parameters, anything)}
    )
    return st.one_of(request, request, request, anything)


@functools.cache
def thinker() -> BailingMMNativeForConditionalGeneration:
    return tiny_model()


@functools.cache
def repository() -> Path:
    """A model that speaks and draws, small enough to be asked thousands of times."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    build_speaking_repository(folder)
    small_image_gen().save_pretrained(folder / "image_gen")
    return folder


@functools.cache
def omni() -> BailingMMNativeForConditionalGeneration:
    return BailingMMNativeForConditionalGeneration.from_pretrained(repository(), dtype=torch.float32).eval()


@functools.cache
def handler() -> EndpointHandler:
    return EndpointHandler(str(repository()), device="cpu")


def changed(tensor: torch.Tensor, change: str) -> Any:
    """A tensor that is wrong in one way."""
    return {
        "longer": lambda: torch.cat([tensor, tensor[:, :1]], 1) if tensor.ndim > 1 else tensor,
        "shorter": lambda: tensor[:, 1:] if tensor.ndim > 1 else tensor,
        "fewer rows": lambda: tensor[1:],
        "more rows": lambda: torch.cat([tensor, tensor[:1]]),
        "float": lambda: tensor.double(),
        "bool": lambda: tensor.bool(),
        "int32": lambda: tensor.int(),
        "beyond": lambda: tensor + 100_000,
        "negative": lambda: -tensor - 1,
        "flat": lambda: tensor.flatten(),
        "deeper": lambda: tensor[None],
        "list": lambda: tensor.tolist(),
        "numpy": lambda: tensor.numpy(),
        "sparse": lambda: tensor.to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "empty": lambda: tensor[:0],
        "nan": lambda: tensor * float("nan"),
    }[change]()


def inputs_of(recipe: dict) -> dict[str, Any]:
    chats = []
    for index, parts in enumerate(recipe["chats"]):
        chat = Chat(index, recipe["encoder"]).text(2)
        for part in parts:
            chat = getattr(chat, part)(*{"text": (3,), "audio": (9,)}.get(part, ()))
        chats.append(chat.text(1))
    inputs: dict[str, Any] = batch(chats)
    for name in recipe["leave out"]:
        inputs.pop(name, None)
    for name, change in recipe["changes"].items():
        if name in inputs:
            inputs[name] = changed(inputs[name], change)
    inputs.update({name: made(value) for name, value in recipe["odd"].items()})
    if recipe["cache"] is not None:
        inputs["past_key_values"] = cache_of(recipe["cache"])
    return inputs


def cache_of(kind: str) -> Any:
    """A cache, empty or ("other") with the tokens of another batch in it."""
    config = thinker().config.get_text_config()
    if kind == "static":
        return StaticCache(config=config, max_cache_len=64)
    cache = DynamicCache(config=config)
    if kind == "other":
        thinker()(torch.arange(30, 45).reshape(3, 5), past_key_values=cache, use_cache=True)
    return cache


@torch.no_grad()
def try_pass(recipe: dict) -> None:
    """One pass, or a short answer, over precomputed features."""
    model, inputs, call = thinker(), inputs_of(recipe), recipe["call"]
    if call == "forward":
        logits = model(**inputs).logits
        expect(logits.dtype == torch.float32 and logits.ndim == 3, "logits [B, L, vocab]", logits.shape)
    elif call in ("generate", "stream"):
        _generate(model, call, {**inputs, **{name: made(value) for name, value in recipe["settings"].items()}})
    elif call == "image features":
        model.get_image_features(inputs.get("pixel_values"), inputs.get("image_grid_thw"))
    else:
        model.get_audio_features(
            inputs.get("audio_feats"), inputs.get("audio_feats_lengths"), inputs.get("use_whisper_encoder")
        )


def _generate(model: Any, call: str, arguments: dict[str, Any]) -> None:
    arguments = {"max_new_tokens": STEPS, "pad_token_id": 0, "eos_token_id": -1, **arguments}
    if call == "generate":
        model.generate(**arguments)
        return
    events = model.stream(**arguments)
    for _, _ in zip(range(20), events, strict=False):
        pass
    events.close()


@torch.no_grad()
def try_settings(recipe: dict) -> None:
    """A short answer with odd settings."""
    torch.manual_seed(0)
    ids = torch.arange(30, 36)[None].repeat(recipe["rows"], 1)
    settings = {name: made(value) for name, value in recipe["settings"].items()}
    if recipe["within"]:
        config = GenerationConfig(max_new_tokens=STEPS, pad_token_id=0, eos_token_id=-1)
        for name in [name for name in settings if hasattr(config, name)]:
            setattr(config, name, settings.pop(name))
        settings["generation_config"] = config
    _generate(thinker(), recipe["call"], {"input_ids": ids, **settings})


def try_output(recipe: dict) -> None:
    """Speech, an image, a turn of a chat, or decoding."""
    call, model = recipe["call"], omni()
    if call in ("decode", "batch_decode"):
        text = getattr(processor(), call)(made(recipe["options"][0]))
        expect(isinstance(text, (str, list)), "decoding gives text", type(text))
        return
    options = {name: made(value) for name, value in recipe["options"].items()}
    if call == "chat":
        reply = model.chat(processor(), max_new_tokens=STEPS).say(**{"content": "hi", **options})
        expect(isinstance(reply, str), "a chat answers in text", type(reply))
    elif call.startswith("draw"):
        ids = torch.arange(30, 36)[None]
        arguments = {"input_ids": ids, "generation_mode": "image", "num_inference_steps": 1, **options}
        if call == "draw":
            model.generate(**arguments)
        else:
            list(model.stream(**arguments))
    else:
        arguments = {"text": "red", "rules": StopRules(max_new_ids=6), "attempts": 1, **options}
        spoken = getattr(model, call)(**arguments)
        if call == "speak":
            expect(all(wave.isfinite().all() for wave in spoken.waveforms), "speech is finite")
        else:
            list(spoken)


def try_request(recipe: Any) -> None:
    """A request to the handler; its errors are answers of one form."""
    answer = handler()(recipe)
    json.dumps(answer)
    if "error" in answer:
        expect(set(answer) == {"error"} and len(answer["error"]) >= 10, "an error says what is wrong", answer)
        expect("object is not" not in answer["error"], "an error says what is wrong", answer)
        raise ValueError(answer["error"])
