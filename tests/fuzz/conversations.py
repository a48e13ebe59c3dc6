"""Whole conversations: any mix of contents, sizes, rates, dtypes, orders, batches and options -> the processor."""

import base64
import functools
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from ming.processing_bailingmm import BailingMMProcessor
from ming.token_types import AUDIO_TYPE, IMAGE_TYPE, VIDEO_TYPE

from .files import NAMES, damaged, seeds
from .outcomes import ROOT, expect
from .values import made, odd

PIECES = [
    "a red circle",
    "<image>",
    "<audio>",
    "<imagePatch>",
    "</image>",
    "<role>",
    "HUMAN",
    "</role>",
    "<|endoftext|>",
]
PIECES += [
    "\ue000",
    "<",
    ">",
    "\n",
    " ",
    "什么",
    "🙂",
    "<role>ASSISTANT</role>",
    "<video>",
    "<|startoftext|>",
    "\x00",
    "é",
]
ROLES = ["HUMAN", "user", "ASSISTANT", "assistant", "SYSTEM", "system"]
MODES = ["RGB", "RGBA", "L", "P", "1", "LA", "CMYK", "I;16", "F", "I"]
DTYPES = ["uint8", "int16", "int64", "float32", "float64", "float16", "bool", "complex64"]
SIDES = st.one_of(st.integers(1, 90), st.sampled_from([0, 27, 28, 29, 56]))
ITEM_OPTIONS = [
    "min_pixels",
    "max_pixels",
    "resized_height",
    "resized_width",
    "fps",
    "nframes",
    "max_frames",
    "min_frames",
]
ITEM_OPTIONS += ["sample", "video_start", "video_end", "total_pixels", "sampling_rate", "seed"]
CALL_OPTIONS = ["padding", "padding_side", "pad_to_multiple_of", "max_length", "truncation", "use_whisper_encoder"]
CALL_OPTIONS += [
    "sampling_rate",
    "min_pixels",
    "max_pixels",
    "fps",
    "num_frames",
    "do_sample_frames",
    "add_generation_prompt",
]
CALL_OPTIONS += ["return_tensors", "return_assistant_tokens_mask", "return_mm_token_type_ids", "load_audio_from_video"]
CALL_OPTIONS += [
    "system_template",
    "continue_final_message",
    "images_kwargs",
    "videos_kwargs",
    "do_rescale",
    "image_mean",
]
CALL_OPTIONS += ["tools", "chat_template", "size", "resample", "tokenize", "text_kwargs", "no_such_option"]
GOOD_OPTIONS = {
    "padding": [True, "longest", False],
    "padding_side": ["left", "right"],
    "use_whisper_encoder": [True, False],
    "min_pixels": [784, 3136],
    "max_pixels": [3136, 50_000],
    "max_length": [64, 4096],
    "truncation": [True],
    "return_tensors": ["pt", "np", None],
    "add_generation_prompt": [True, False],
    "return_assistant_tokens_mask": [True],
    "sampling_rate": [8000, 16000, 44100],
    "load_audio_from_video": [True, False],
    "fps": [1, 4.0],
    "num_frames": [2, 4],
}


def texts() -> st.SearchStrategy:
    return st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


def sources() -> st.SearchStrategy:
    """Recipes of media of all kinds; which one stands where is up to chance."""
    dtype, layout = st.sampled_from(DTYPES), st.sampled_from(["first", "last", "none"])
    scale = st.sampled_from([1.0, 255.0, 1e4, -1.0, float("nan")])
    return st.one_of(
        st.fixed_dictionaries({"pil": st.sampled_from(MODES), "height": SIDES, "width": SIDES}),
        st.fixed_dictionaries({"pixels": dtype, "height": SIDES, "width": SIDES, "layout": layout, "scale": scale}),
        st.fixed_dictionaries(
            {"frames": dtype, "count": st.integers(0, 9), "height": SIDES, "width": SIDES, "tensor": st.booleans()}
        ),
        st.fixed_dictionaries({"list of": st.integers(0, 6), "height": SIDES, "width": SIDES}),
        st.fixed_dictionaries(
            {
                "wave": dtype,
                "samples": st.one_of(st.integers(0, 900), st.integers(4000, 9000)),
                "channels": st.sampled_from([0, 1, 2, 8]),
                "rate": st.sampled_from([None, 8000, 16000, 22050, 44100, 0, -1, 15999.5, float("inf"), 2**40]),
                "scale": scale,
            }
        ),
        st.fixed_dictionaries(
            {
                "file": st.sampled_from(NAMES),
                "damage": st.one_of(st.none(), st.integers(0, 999)),
                "as": st.sampled_from("bud"),
            }
        ),
        odd(),
    )


def items() -> st.SearchStrategy:
    options = st.dictionaries(st.sampled_from(ITEM_OPTIONS), odd(), max_size=2)
    media = st.fixed_dictionaries(
        {"type": st.sampled_from(["image", "video", "audio", "image_url", "input_audio"]), "source": sources()}
    )
    fitting = st.one_of(*(st.tuples(st.just(kind), source) for kind, source in fitting_sources().items()))
    good = fitting.map(lambda pair: {"type": pair[0], "source": pair[1]})
    text = texts().map(lambda text: {"type": "text", "text": text})
    optioned = st.tuples(good, options).map(lambda pair: {**pair[0], "options": pair[1]})
    return st.one_of(text, text, *[good] * 6, optioned, media)


def fitting_sources() -> dict[str, st.SearchStrategy]:
    """Recipes of media that can be read."""
    side = st.integers(20, 90)
    return {
        "image": st.one_of(
            st.fixed_dictionaries({"pil": st.sampled_from(MODES[:7]), "height": side, "width": side}),
            st.fixed_dictionaries(
                {"file": st.sampled_from(["png", "jpg", "gif"]), "damage": st.none(), "as": st.sampled_from("bud")}
            ),
        ),
        "video": st.fixed_dictionaries(
            {
                "frames": st.just("uint8"),
                "count": st.integers(4, 7),
                "height": side,
                "width": side,
                "tensor": st.booleans(),
            }
        ),
        "audio": st.fixed_dictionaries(
            {
                "wave": st.sampled_from(["int16", "float32"]),
                "samples": st.integers(2000, 9000),
                "channels": st.sampled_from([0, 2]),
                "rate": st.sampled_from([8000, 16000, 22050]),
                "scale": st.just(1.0),
            }
        ),
    }


def conversations() -> st.SearchStrategy:
    """Recipes: a batch of conversations, and options of the call."""
    content = st.one_of(texts(), st.lists(items(), max_size=4), st.lists(items(), max_size=4))
    message = st.fixed_dictionaries({"role": st.sampled_from(["user", "user", *ROLES]), "content": content})
    strange = st.fixed_dictionaries({"role": odd(), "content": odd()})
    chat = st.one_of(*[st.lists(message, min_size=1, max_size=2)] * 19, st.lists(strange, max_size=2))
    good = st.sampled_from(sorted(GOOD_OPTIONS)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(GOOD_OPTIONS[name]))
    )
    option = st.one_of(good, good, good, st.tuples(st.sampled_from(CALL_OPTIONS), odd()))
    return st.fixed_dictionaries(
        {"chats": st.lists(chat, min_size=1, max_size=2), "options": st.lists(option, max_size=2).map(dict)}
    )


def _array(dtype: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    values = np.random.default_rng(0).random(shape) * scale
    with np.errstate(invalid="ignore"):
        return values.astype(dtype)


def source_of(recipe: Any) -> Any:
    """The medium of a recipe of `sources`."""
    if not isinstance(recipe, dict) or "odd" in recipe:
        return made(recipe)
    if "pil" in recipe:
        return Image.new(recipe["pil"], (recipe["width"], recipe["height"]), 1)
    if "pixels" in recipe:
        shape = (recipe["height"], recipe["width"])
        shape = {"first": (3, *shape), "last": (*shape, 4), "none": shape}[recipe["layout"]]
        return _array(recipe["pixels"], shape, recipe["scale"])
    if "frames" in recipe:
        frames = _array(recipe["frames"], (recipe["count"], recipe["height"], recipe["width"], 3), 255)
        return torch.from_numpy(frames).permute(0, 3, 1, 2) if recipe["tensor"] else frames
    if "list of" in recipe:
        return [Image.new("RGB", (recipe["width"], recipe["height"]))] * recipe["list of"]
    if "wave" in recipe:
        channels = (recipe["channels"],) if recipe["channels"] else ()
        full = 32767 if recipe["wave"] == "int16" else 1
        wave = _array(recipe["wave"], (*channels, recipe["samples"]), recipe["scale"] * full)
        return wave if recipe["rate"] is None else (wave, recipe["rate"])
    if "file" in recipe:
        data = seeds()[recipe["file"]]
        data = data if recipe["damage"] is None else damaged(data, "flip", recipe["damage"], data)
        url = f"data:x/y;base64,{base64.b64encode(data).decode()}"
        return {"b": data, "u": url, "d": {"bytes": data, "path": None}}[recipe["as"]]
    return recipe


def chat_of(recipe: list, text: str | None = None) -> list:
    """The messages of a recipe; `text` stands in for every text."""
    messages = []
    for message in recipe:
        content = message["content"]
        if isinstance(content, str) and text is not None:
            content = text if content else ""
        elif isinstance(content, list):
            content = [_item_of(item, text) for item in content]
        messages.append({"role": made(message["role"]), "content": made(content)})
    return messages


def _item_of(item: Any, text: str | None) -> Any:
    if not isinstance(item, dict) or "type" not in item:
        return made(item)
    if item["type"] == "text" and isinstance(item.get("text"), str):
        return {**item, "text": item["text"] if text is None or not item["text"] else text}
    if "source" not in item:
        return item
    options = {name: made(value) for name, value in item.get("options", {}).items()}
    return {"type": item["type"], item["type"]: source_of(item["source"]), **options}


@functools.cache
def processor() -> BailingMMProcessor:
    return BailingMMProcessor.from_pretrained(ROOT)


def encoded(chats: list, options: dict) -> Any:
    return processor().apply_chat_template(
        chats, **{"tokenize": True, "return_dict": True, "return_tensors": "pt", **options}
    )


def try_conversation(recipe: dict) -> None:
    """Encode a batch of conversations; it must equal its rows, and its counts its features."""
    options = {name: made(value) for name, value in recipe["options"].items()}
    batch = encoded([chat_of(chat) for chat in recipe["chats"]], options)
    if not hasattr(batch, "keys") or options.get("return_tensors", "pt") != "pt" or "mm_token_type_ids" not in batch:
        return
    _expect_counts(batch)
    if options.get("truncation"):
        return
    _expect_rows(batch, recipe["chats"], options)
    neutral = encoded([chat_of(chat, "x") for chat in recipe["chats"]], options)
    for row, (ids, plain) in enumerate(zip(_rows(batch), _rows(neutral), strict=True)):
        expect(
            _controls(ids) == _controls(plain), "text holds no control tokens", row, _controls(ids), _controls(plain)
        )


def _expect_counts(batch: Any) -> None:
    types = batch["mm_token_type_ids"]
    for kind, name in ((IMAGE_TYPE, "image_grid_thw"), (VIDEO_TYPE, "video_grid_thw")):
        wanted = int(batch[name].prod(-1).sum()) // 4 if name in batch else 0
        expect(int((types == kind).sum()) == wanted, f"as many tokens as features of {name}", wanted)
    spans = int(batch["audio_placeholder_loc_lens"][..., 1].sum()) if "audio_feats" in batch else 0
    expect(int((types == AUDIO_TYPE).sum()) == spans, "as many audio tokens as their positions say", spans)
    for name in ("pixel_values", "pixel_values_videos", "audio_feats"):
        expect(name not in batch or bool(batch[name].isfinite().all()), f"{name} is finite")


def _rows(batch: Any) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def _expect_rows(batch: Any, chats: list, options: dict) -> None:
    alone = [encoded([chat_of(chat)], options) for chat in chats]
    expect(_rows(batch) == [_rows(one)[0] for one in alone], "a batch has the tokens of its rows")
    for name in ("pixel_values", "pixel_values_videos"):
        parts = [one[name] for one in alone if name in one]
        same = not parts or torch.equal(torch.cat(parts), batch[name])
        expect(same, f"{name} of a batch are those of its rows")
    frames = sum(int(one["audio_feats_lengths"].sum()) for one in alone if "audio_feats" in one)
    expect(not frames or frames == int(batch["audio_feats_lengths"].sum()), "a batch has the audio of its rows")


def _controls(ids: list[int]) -> list[int]:
    tokens = processor().tokenizer.added_tokens_decoder
    return [index for index in ids if index in tokens]
